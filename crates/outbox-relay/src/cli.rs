//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::cli::{Common, end, print_settings};
use daemon::{Exit, Failure, healthcheck, init_logs};
use event_store::Session;

use crate::run::{run, store_options};
use crate::{Servers, Settings};

/// Publishes the outbox of PostgreSQL to RabbitMQ.
///
/// Configured by a TOML file and by environment variables: `OUTBOX_RELAY__SECTION__KEY` sets
/// `section.key`; `EVENT_STORE_URL`, `AMQP_URL` and `RUST_LOG` are understood too. A URL may also
/// come from a file: `OUTBOX_RELAY__POSTGRES__URL_FILE`. `config/default.toml` describes every key.
///
/// Exit codes: 0 done or stopped by a signal, 1 failure, 2 wrong command line, 64 wrong
/// configuration, 69 server not reachable, 77 login refused.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish until SIGTERM; waits for servers that are not there.
    Run,
    /// Bring the event store and the outbox in PostgreSQL up to date.
    Migrate,
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask the relay on this host whether it is ready; for containers.
    Healthcheck,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every key, its value and where that comes from; secrets are hidden.
    Show,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let needed = match arguments.command {
        Command::Run => Servers { postgres: true, rabbitmq: true },
        Command::Migrate => Servers { postgres: true, rabbitmq: false },
        Command::Config(_) | Command::Healthcheck => Servers::default(),
    };
    let reader = arguments.common.reader("OUTBOX_RELAY");
    let (settings, shown) = match reader.and_then(|reader| Settings::read(reader, needed)) {
        Ok(read) => read,
        Err(errors) => return end(Err(errors.into())),
    };
    match arguments.command {
        Command::Run => match init_logs(&settings.log) {
            Ok(()) => daemon::run(async |tasks| run(settings, tasks).await),
            failed => end(failed),
        },
        Command::Migrate => end(migrate(&settings)),
        Command::Config(ConfigCommand::Show) => {
            print_settings(&shown);
            ExitCode::SUCCESS
        }
        Command::Healthcheck => end(healthcheck(settings.http_listen)),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let options = store_options(settings)?;
    let mut session = Session::connect(&options).await.map_err(failure)?;
    session.migrate().await.map_err(failure)?;
    session.close().await;
    say(&format!("the event store at {} is up to date", options.address()));
    Ok(())
}

fn failure(error: event_store::Error) -> Failure {
    use event_store::Error;
    let exit = match error {
        Error::Url => Exit::Configuration,
        Error::Login { .. } => Exit::Login,
        Error::Unreachable { .. } | Error::NotPrimary { .. } | Error::Timeout { .. } => {
            Exit::Unavailable
        }
        Error::NotMigrated
        | Error::Migration(_)
        | Error::Refused { .. }
        | Error::Statement { .. }
        | Error::Row { .. }
        | Error::NotMarked { .. } => Exit::Failed,
    };
    Failure::new(exit, error)
}

#[expect(clippy::print_stdout, reason = "the result of a command")]
fn say(text: &str) {
    println!("{text}");
}
