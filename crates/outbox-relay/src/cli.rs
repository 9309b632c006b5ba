//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::cli::{Common, end, print_settings};
use daemon::{Exit, Failure, healthcheck, init_logs};

use crate::commands::{Blocked, Format, Reconcile, Republish, migrate, status};
use crate::run::run;
use crate::{Servers, Settings};

/// Publishes the outbox of PostgreSQL to RabbitMQ.
///
/// Configured by a TOML file and by environment variables: `OUTBOX_RELAY__SECTION__KEY` sets
/// `section.key`; `EVENT_STORE_URL`, `AMQP_URL` and `RUST_LOG` are understood too. A URL may also
/// come from a file: `OUTBOX_RELAY__POSTGRES__URL_FILE`. `config/default.toml` describes every key.
///
/// Exit codes: 0 done or stopped by a signal, 1 failure, 2 wrong command line, 64 wrong
/// configuration, 65 no such event or an event is missing, 69 server not reachable, 77 login refused.
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
    /// Show what is to publish, what waits and why.
    Status {
        #[command(flatten)]
        format: Format,
    },
    /// Decide what becomes of events that cannot be published.
    #[command(subcommand)]
    Blocked(Blocked),
    Reconcile(Reconcile),
    Republish(Republish),
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
        Command::Migrate
        | Command::Status { .. }
        | Command::Blocked(_)
        | Command::Reconcile(_)
        | Command::Republish(_) => Servers { postgres: true, rabbitmq: false },
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
        Command::Migrate => finish(migrate(&settings)),
        Command::Status { format } => finish(status(&settings, format)),
        Command::Blocked(command) => finish(command.run(&settings)),
        Command::Reconcile(command) => finish(command.run(&settings)),
        Command::Republish(command) => finish(command.run(&settings)),
        Command::Config(ConfigCommand::Show) => {
            print_settings(&shown);
            ExitCode::SUCCESS
        }
        Command::Healthcheck => end(healthcheck(settings.http_listen)),
    }
}

/// Runs a command to its end.
fn finish(command: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    end(runtime
        .map_err(|error| Failure::new(Exit::Failed, error))
        .and_then(|it| it.block_on(command)))
}
