//! Developer commands: `cargo xtask --help`.
//!
//! Light on purpose: it is compiled before anything else can start.
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

use clap::{Parser, Subcommand};

/// Developer commands of outbox-relay and projector.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch events flow: servers, both daemons, a sample workload, read models that fill.
    Demo(demo::Demo),
    /// Run all tests on real servers.
    Test(test::Test),
    /// Measure, beside what bare programs reach with the same servers.
    Bench(bench::Bench),
    Fuzz(fuzz::Fuzz),
    /// Break everything that can break, and look for events that are lost, doubled or out of order.
    Chaos(chaos::Chaos),
    /// Look for mistakes: format, lints, documentation, banned dependencies.
    Lint,
    /// PostgreSQL, RabbitMQ and MySQL for development.
    ///
    /// The first that works: those that `EVENT_STORE_URL`, `AMQP_URL` and `READ_MODEL_URL` name;
    /// docker compose; private servers unpacked from Debian's packages into target/servers.
    #[command(subcommand)]
    Servers(servers::Command),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Test(test) => test.run(),
        Command::Bench(bench) => bench.run(),
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Chaos(chaos) => chaos.run(),
        Command::Lint => lint::run(),
        Command::Servers(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
