//! Developer commands: `cargo xtask` lists them.
//!
//! Few dependencies: this is compiled before anything else can start.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "commands print their results")]

mod bench;
mod chaos;
mod demo;
mod fuzz;
mod lint;
mod process;
mod servers;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Developer commands of outbox-relay and projector.
#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "Examples:
  cargo xtask demo --seconds 30    events flow for 30 seconds, then the read models are shown
  cargo xtask test parked          the tests with `parked` in their names
  cargo xtask lint                 all checks that run no test
  cargo xtask chaos --seed 1       60 faults by a fixed schedule
  cargo xtask bench relay          how fast the relay publishes
  cargo xtask fuzz --seconds 10    10 seconds for each fuzz target
  cargo xtask servers up           servers that stay up between commands

`cargo xtask COMMAND --help` has more. Only `demo`, `test`, `chaos` and `bench` start servers and stop
them again."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Test(test::Test),
    Lint(lint::Lint),
    Chaos(chaos::Chaos),
    Bench(bench::Bench),
    Fuzz(fuzz::Fuzz),
    Servers(servers::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Option<Command>) -> Result<()> {
    match command {
        Some(Command::Demo(demo)) => demo.run(),
        Some(Command::Test(test)) => test.run(),
        Some(Command::Lint(_)) => lint::run(),
        Some(Command::Chaos(chaos)) => chaos.run(),
        Some(Command::Bench(bench)) => bench.run(),
        Some(Command::Fuzz(fuzz)) => fuzz.run(),
        Some(Command::Servers(servers)) => servers.run(),
        None => Ok(Arguments::command().print_help()?),
    }
}
