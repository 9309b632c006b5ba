//! The command line.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use daemon::cli::{Common, end, print_settings};
use daemon::output::Format;
use daemon::{Failure, healthcheck, init_logs};

use read_model::Registry;

use crate::commands::{
    Check, Dead, Parked, Rebuild, Reconcile, ReconcileHistory, Show, Status, Topology, Verify,
    adopt, check, cleanup, migrate, pause, reconcile, reconcile_history, resume, roll_back, show,
    status, verify,
};
use crate::run::run;
use crate::{Servers, Settings};

/// Keeps MySQL read models up to date from RabbitMQ and the event store.
///
/// A TOML file and environment variables set the configuration. `PROJECTOR__SECTION__KEY` sets
/// `section.key`; `EVENT_STORE_URL`, `AMQP_URL`, `READ_MODEL_URL` and `RUST_LOG` work too.
/// To read a URL from a file, set `PROJECTOR__MYSQL__URL_FILE`. `config/default.toml` describes
/// every key.
///
/// Exit codes: 0 done or stopped by a signal, 1 failure, 2 wrong command line, 3 `status` says broken, 64 wrong
/// configuration, 65 a mistake in a projection, 69 server not reachable, 77 login refused.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Examples:\n  projector check\n  projector migrate\n  projector run"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep the read models up to date until SIGTERM. Waits for servers that are down.
    #[command(after_help = "Example:\n  projector --config projector.toml run")]
    Run,
    /// Create the missing tables of projections, and bring the bookkeeping up to this version.
    ///
    /// The bookkeeping records how far each projection and each stream is. Projectors of the previous
    /// version may run meanwhile.
    #[command(after_help = "Example:\n  projector migrate")]
    Migrate,
    /// Check projections for mistakes in files, parameters and SQL. MySQL checks the SQL.
    Check(Check),
    /// Print the first rows of a projection's tables.
    Show(Show),
    /// Show why read models do not keep up, and the state of each projection.
    ///
    /// Exit code 1 if something needs attention, 3 if a read model is not kept up to date. A server that does
    /// not answer is named.
    Status(Status),
    /// List parked streams, and retry or skip the event that stopped each of them.
    ///
    /// The projector parks a stream when it cannot apply its next event. Other streams go on.
    #[command(subcommand, after_help = "Example:\n  projector parked list order_summary")]
    Parked(Parked),
    /// List dead letters, and replay or discard them.
    ///
    /// A dead letter is a message that is not an event of the event store, or an event that the projection
    /// does not follow.
    #[command(subcommand, after_help = "Example:\n  projector dead list order_summary")]
    Dead(Dead),
    /// Stop applying events until `resume`. Messages wait in the queue.
    Pause(Pause),
    /// Apply events again after a pause.
    ///
    /// The projector pauses a projection itself when the events of many streams fail at once.
    #[command(after_help = "Example:\n  projector resume order_summary")]
    Resume(OneProjection),
    /// Put the files at hand in service: their handlers are applied to events from now on.
    ///
    /// A projector that starts with new handlers does this itself. Handlers that others have replaced come
    /// back only by this command. A changed tables.sql needs a rebuild.
    #[command(after_help = "Example:\n  projector adopt order_summary")]
    Adopt(OneProjection),
    /// Rebuild a read model from the event store without downtime, and manage rebuilds.
    Rebuild(Rebuild),
    /// The same as `rebuild rollback`.
    #[command(hide = true, after_help = "Example:\n  projector rebuild rollback order_summary")]
    Rollback(OneProjection),
    /// The same as `rebuild cleanup`.
    #[command(hide = true, after_help = "Example:\n  projector rebuild cleanup order_summary")]
    DropOld(OneProjection),
    /// Prove that a read model is right: apply the history to separate tables and compare every row.
    ///
    /// Exit code 1 if a row differs, or if the bookkeeping contradicts the event store.
    Verify(Verify),
    /// Compare how many events were appended, published and applied, by category and time.
    ///
    /// Exit code 1 if an event is missing, or if the event store does not have the last applied event of a stream.
    #[command(alias = "audit")]
    Reconcile(Reconcile),
    /// List the streams with applied events that the event store has lost, and put them right.
    ///
    /// The projector pauses a projection whose events the event store has lost: in an asynchronous failover, in
    /// the restore of a backup, or in a crash with `synchronous_commit = off`. Exit code 1 if events differ.
    ReconcileHistory(ReconcileHistory),
    /// Compare the queues in RabbitMQ with those that the projections need, or declare missing ones.
    #[command(subcommand, after_help = "Example:\n  projector topology diff")]
    Topology(Topology),
    /// Show the configuration.
    #[command(subcommand, after_help = "Example:\n  projector config show")]
    Config(ConfigCommand),
    /// Ask the projector on this host whether it is ready. For the health checks of containers.
    #[command(after_help = "Example:\n  projector healthcheck")]
    Healthcheck,
}

#[derive(Args)]
#[command(after_help = "Example:\n  projector pause order_summary --reason \"OPS-12\"")]
struct Pause {
    /// The projection.
    projection: String,
    /// The reason that `status` and `/readyz` show.
    #[arg(long, default_value = "by hand")]
    reason: String,
}

#[derive(Args)]
struct OneProjection {
    /// The projection.
    projection: String,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every key with its value and its origin. Secrets are hidden.
    #[command(after_help = "Example:\n  projector --config projector.toml config show")]
    Show {
        #[command(flatten)]
        format: Format,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    main_with(Registry::default())
}

/// Runs the command line of your own program, which adds projections in Rust to those in SQL.
pub fn main_with(code: Registry) -> ExitCode {
    #[cfg(feature = "failpoints")]
    crate::failpoints::setup();
    let arguments = Arguments::parse();
    let (all, sources, mysql, none) = (
        Servers { sources: true, mysql: true },
        Servers { sources: true, mysql: false },
        Servers { sources: false, mysql: true },
        Servers::default(),
    );
    let needed = match &arguments.command {
        Command::Run
        | Command::Status(_)
        | Command::Parked(_)
        | Command::Dead(_)
        | Command::Rebuild(_)
        | Command::Rollback(_)
        | Command::DropOld(_)
        | Command::Verify(_)
        | Command::Reconcile(_)
        | Command::ReconcileHistory(_) => all,
        Command::Topology(_) => sources,
        Command::Check(check) if check.offline => none,
        Command::Migrate
        | Command::Show(_)
        | Command::Check(_)
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Adopt(_) => mysql,
        Command::Config(_) | Command::Healthcheck => none,
    };
    let reader = arguments.common.reader("PROJECTOR");
    let (settings, shown) = match reader.and_then(|reader| Settings::read(reader, needed)) {
        Ok((settings, shown)) => (Settings { code, ..settings }, shown),
        Err(errors) => return end(Err(errors.into())),
    };
    match arguments.command {
        Command::Run => match init_logs(&settings.log) {
            Ok(()) => daemon::run(async |tasks| run(settings, tasks).await),
            failed => end(failed),
        },
        Command::Migrate => end(block_on(migrate(&settings))),
        Command::Check(arguments) => end(block_on(check(&settings, &arguments))),
        Command::Show(arguments) => end(block_on(show(&settings, &arguments))),
        Command::Status(arguments) => match block_on(status(&settings, &arguments)) {
            Ok(exit) => exit.into(),
            Err(failure) => end(Err(failure)),
        },
        Command::Verify(arguments) => answer(block_on(verify(&settings, &arguments))),
        Command::Reconcile(arguments) => answer(block_on(reconcile(&settings, &arguments))),
        Command::ReconcileHistory(arguments) => {
            answer(block_on(reconcile_history(&settings, &arguments)))
        }
        Command::Parked(command) => end(block_on(command.run(&settings))),
        Command::Dead(command) => end(block_on(command.run(&settings))),
        Command::Pause(Pause { projection, reason }) => {
            end(block_on(pause(&settings, &projection, &reason)))
        }
        Command::Resume(OneProjection { projection }) => {
            end(block_on(resume(&settings, &projection)))
        }
        Command::Adopt(OneProjection { projection }) => {
            end(block_on(adopt(&settings, &projection)))
        }
        Command::Rebuild(arguments) => answer(block_on(arguments.run(&settings))),
        Command::Rollback(OneProjection { projection }) => {
            end(block_on(roll_back(&settings, &projection)))
        }
        Command::DropOld(OneProjection { projection }) => {
            end(block_on(cleanup(&settings, &projection)))
        }
        Command::Topology(command) => end(block_on(command.run(&settings))),
        Command::Config(ConfigCommand::Show { format }) => end(print_settings(&shown, format)),
        Command::Healthcheck => end(healthcheck(settings.http_listen)),
    }
}

/// The exit code of a command that answers yes (0) or no (1).
fn answer(result: Result<bool, Failure>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => end(Err(failure)),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn block_on<T>(command: impl Future<Output = T>) -> T {
    command.await
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_help_of_every_command_has_an_example() {
        fn check(command: &clap::Command) {
            assert!(command.get_after_help().is_some(), "{} has no example", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    /// Commands that only act. Their result is that they were done, which the exit code says.
    const ACTIONS: [&str; 14] = [
        "run",
        "migrate",
        "pause",
        "resume",
        "adopt",
        "rollback",
        "drop-old",
        "rebuild cancel",
        "rebuild rollback",
        "rebuild cleanup",
        "topology apply",
        "topology reset",
        "healthcheck",
        "help",
    ];

    #[test]
    fn every_command_that_reports_has_json() {
        fn check(command: &clap::Command, path: &str) {
            for inner in command.get_subcommands() {
                let path = format!("{path} {}", inner.get_name());
                check(inner, path.trim());
            }
            if command.get_subcommands().next().is_none() && !ACTIONS.contains(&path) {
                let json = command.get_arguments().any(|it| it.get_long() == Some("json"));
                assert!(json, "`projector {path}` reports, and has no --json");
            }
        }
        check(&Arguments::command(), "");
    }
}
