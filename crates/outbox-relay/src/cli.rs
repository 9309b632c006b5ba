//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemon::cli::{Common, end, print_settings};
use daemon::output::Format;
use daemon::{Exit, Failure, healthcheck, init_logs};

use crate::commands::{Grants, Parked, Reconcile, Republish, migrate, status};
use crate::run::run;
use crate::{Servers, Settings};

/// Publishes the outbox of PostgreSQL to RabbitMQ.
///
/// Applications append domain events to the event store in PostgreSQL, which puts a copy of each
/// into the table `outbox`. The relay publishes these copies to an exchange in RabbitMQ, each stream
/// in order, and marks them once the broker has confirmed them.
///
/// Settings come from a TOML file and from environment variables: `OUTBOX_RELAY__SECTION__KEY` sets
/// `section.key`; `EVENT_STORE_URL`, `AMQP_URL` and `RUST_LOG` work too. A URL can also come from a
/// file that `OUTBOX_RELAY__POSTGRES__URL_FILE` names. `config/default.toml` describes every key.
///
/// Exit codes: 0 success, or stopped by a signal; 1 failure, or a status that needs attention; 2 wrong
/// command line; 3 a status that is broken; 64 wrong
/// configuration; 65 no such event, or an event is missing; 69 server not reachable; 77 login
/// refused.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Example:\n  EVENT_STORE_URL=postgres://app:secret@localhost/shop \\\n  \
                  AMQP_URL=amqp://app:secret@localhost outbox-relay run"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish events until SIGTERM or SIGINT.
    ///
    /// Servers that are unreachable, at the start or later, are retried until they answer. Several
    /// relays can run at the same time: they share the streams. /readyz, /livez and /metrics are
    /// served at `relay.http_listen`.
    #[command(after_help = "Example:\n  outbox-relay run --config relay.toml")]
    Run,
    /// Create or update the tables of the event store and the outbox in PostgreSQL.
    ///
    /// Does nothing if they are up to date. Safe to run at any time, by several programs at once, and
    /// while applications append: a migration waits up to 5 s for a lock. If it fails, nothing has
    /// changed, and it can be run again. Needs a role that owns the tables.
    #[command(after_help = "Example:\n  outbox-relay migrate && outbox-relay run")]
    Migrate,
    Grants(Grants),
    /// Show how many events are unpublished, and why.
    ///
    /// Pending events will be published next. Held events wait behind an event of their stream that
    /// could not be published. Delayed events have a later time of publication. Needs PostgreSQL
    /// only. Exit codes: 0 everything works; 1 attention, for example streams wait; 3 broken: no relay
    /// runs, it cannot publish, or somebody has locked its lanes.
    #[command(after_help = "Example:\n  outbox-relay status --json | jq .pending")]
    Status {
        #[command(flatten)]
        format: Format,
    },
    /// List parked streams, and retry or skip their events.
    ///
    /// The relay parks a stream after an event of it has failed `relay.max_attempts` times because of
    /// the event itself: it is too large, or RabbitMQ refuses it. Later events of the stream wait
    /// until a person decides: retry the event, or skip it. Other streams go on.
    #[command(
        subcommand,
        alias = "blocked",
        after_help = "Example:\n  outbox-relay parked list\n  \
                      outbox-relay parked skip 4711 --reason 'larger than the broker allows'"
    )]
    Parked(Parked),
    Reconcile(Reconcile),
    Republish(Republish),
    /// Show the settings.
    #[command(subcommand, after_help = "Example:\n  outbox-relay config show")]
    Config(ConfigCommand),
    /// Exit with 0 if the relay on this host is ready, for container health checks.
    ///
    /// Asks /readyz at `relay.http_listen`, and prints the reason if the relay is not ready.
    #[command(after_help = "Example:\n  HEALTHCHECK CMD [\"outbox-relay\", \"healthcheck\"]")]
    Healthcheck,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every key with its value and its origin: default, file or environment variable.
    ///
    /// Passwords are hidden. Prints every error in the settings at once.
    #[command(after_help = "Example:\n  outbox-relay config show --config relay.toml")]
    Show {
        #[command(flatten)]
        format: Format,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let needed = match &arguments.command {
        Command::Run => Servers { postgres: true, rabbitmq: true },
        Command::Migrate
        | Command::Status { .. }
        | Command::Parked(_)
        | Command::Reconcile(_)
        | Command::Republish(_) => Servers { postgres: true, rabbitmq: false },
        Command::Grants(grants) => Servers { postgres: grants.apply, rabbitmq: false },
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
        Command::Grants(command) => finish(command.run(&settings)),
        Command::Status { format } => finish_with(status(&settings, format)),
        Command::Parked(command) => finish(command.run(&settings)),
        Command::Reconcile(command) => finish(command.run(&settings)),
        Command::Republish(command) => finish(command.run(&settings)),
        Command::Config(ConfigCommand::Show { format }) => end(print_settings(&shown, format)),
        Command::Healthcheck => end(healthcheck(settings.http_listen)),
    }
}

/// Runs a command to its end.
fn finish(command: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    finish_with(async { command.await.map(|()| Exit::Done) })
}

/// Runs a command to its end. Its success has an exit code too.
fn finish_with(command: impl Future<Output = Result<Exit, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .map_err(|error| Failure::new(Exit::Failed, error))
        .and_then(|it| it.block_on(command));
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => end(Err(failure)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// A stranger finds an example in the help of every command.
    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example:\n  "), "{} has no example", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    /// A script can read what a command reports.
    #[test]
    fn every_command_that_reports_has_json() {
        fn check(command: &clap::Command) {
            let has_json = command.get_arguments().any(|argument| argument.get_id() == "json");
            let acts = ["run", "migrate", "grants", "healthcheck"].contains(&command.get_name());
            let is_leaf = command.get_subcommands().next().is_none();
            assert_eq!(has_json, is_leaf && !acts, "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    /// Single events, a filter and all parked streams exclude each other.
    #[test]
    fn a_retry_names_what_it_means() {
        let parse = |text: &str| {
            let words = ["outbox-relay", "parked", "retry"].into_iter().chain(text.split(' '));
            Arguments::try_parse_from(words.filter(|word| !word.is_empty())).is_ok()
        };
        for right in
            ["1 2", "--all", "--reason nacked", "--key a.B --category a --error full --dry-run"]
        {
            assert!(parse(right), "{right}");
        }
        for wrong in ["", "--dry-run", "1 --all", "1 --key a.B", "--all --key a.B", "1 --dry-run"] {
            assert!(!parse(wrong), "{wrong}");
        }
        assert!(!parse("--reason delayed"), "a delayed event waits for its time");
    }

    /// `blocked` was the name of `parked` in earlier releases.
    #[test]
    fn the_earlier_name_still_works() {
        let arguments = Arguments::try_parse_from(["outbox-relay", "blocked", "list"]).unwrap();
        assert!(matches!(arguments.command, Command::Parked(_)));
    }
}
