//! The command line.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use daemon::cli::{Common, end, print_settings};
use daemon::{Failure, healthcheck, init_logs};

use crate::apply::ReadModel;
use crate::code::Registry;
use crate::commands::{
    Audit, Check, Format, Parked, Rebuild, Topology, Verify, audit, check, drop_old, models,
    open_mysql, pause, rebuild, resume, roll_back, say, status, verify,
};
use crate::mysql::Migrated;
use crate::run::{load, run};
use crate::trouble::Trouble;
use crate::{Servers, Settings};

/// Keeps MySQL read models up to date from RabbitMQ and the event store.
///
/// Configured by a TOML file and by environment variables: `PROJECTOR__SECTION__KEY` sets
/// `section.key`; `EVENT_STORE_URL`, `AMQP_URL`, `READ_MODEL_URL` and `RUST_LOG` are understood too.
/// A URL may also come from a file: `PROJECTOR__MYSQL__URL_FILE`. `config/default.toml` describes
/// every key.
///
/// Exit codes: 0 done or stopped by a signal, 1 failure, 2 wrong command line, 64 wrong
/// configuration, 65 a mistake in a projection, 69 server not reachable, 77 login refused.
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
    /// Keep the read models up to date until SIGTERM; waits for servers that are not there.
    Run,
    /// Make the tables of the projections in MySQL that are missing.
    Migrate,
    /// Look for mistakes in projections: files, parameters, and SQL as MySQL sees it.
    Check(Check),
    /// Print the first rows of a projection's tables.
    Show(Show),
    /// Show how far the projections are, what is parked, and who follows which queue.
    ///
    /// Exit code 1 when one does not follow its queue, or has a parked stream.
    Status(Status),
    /// Look at streams that cannot go on, and decide.
    #[command(subcommand)]
    Parked(Parked),
    /// Apply nothing more until `resume`; what is published waits in the queue.
    Pause(Pause),
    /// Go on after `pause`, or after a projection was paused because too many streams could not go on.
    Resume(OneProjection),
    /// Build a read model anew from the event store, beside the live one, and put it in service at once.
    ///
    /// Applications go on reading and writing. Interrupted, it goes on where it was, in any running
    /// projector or when it is called again.
    Rebuild(Rebuild),
    /// Put the tables of before a rebuild back in service, with all events since.
    Rollback(OneProjection),
    /// Drop the tables that are not in service any more.
    DropOld(OneProjection),
    /// Prove that a read model is what the event store gives: fold the history beside it, and compare
    /// every row. Exit code 1 when one differs, or when the bookkeeping does not fit the event store.
    Verify(Verify),
    /// Compare what was appended with what was published and applied, by category and time. Exit code 1
    /// when something is missing.
    Audit(Audit),
    /// Compare the broker with what the projections need.
    #[command(subcommand)]
    Topology(Topology),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask the projector on this host whether it is ready; for containers.
    Healthcheck,
}

#[derive(Args)]
struct Show {
    /// The projection.
    projection: String,
    /// Rows of each table at most.
    #[arg(long, default_value_t = 10)]
    limit: u32,
}

#[derive(Args)]
struct Status {
    /// The projections; otherwise those that are configured.
    projections: Vec<String>,
    #[command(flatten)]
    format: Format,
}

#[derive(Args)]
struct Pause {
    /// The projection.
    projection: String,
    /// Why; `status` and `/readyz` show it.
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
    /// Print every key, its value and where that comes from; secrets are hidden.
    Show,
}

/// Runs the program.
pub fn main() -> ExitCode {
    main_with(Registry::default())
}

/// Runs a program of your own that has projections in Rust, beside those in SQL.
pub fn main_with(code: Registry) -> ExitCode {
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
        | Command::Rebuild(_)
        | Command::Rollback(_)
        | Command::DropOld(_)
        | Command::Verify(_)
        | Command::Audit(_) => all,
        Command::Topology(_) => sources,
        Command::Check(check) if check.offline => none,
        Command::Migrate
        | Command::Show(_)
        | Command::Check(_)
        | Command::Pause(_)
        | Command::Resume(_) => mysql,
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
        Command::Status(Status { projections, format }) => {
            answer(block_on(status(&settings, &projections, format)))
        }
        Command::Verify(arguments) => answer(block_on(verify(&settings, &arguments))),
        Command::Audit(arguments) => answer(block_on(audit(&settings, &arguments))),
        Command::Parked(command) => end(block_on(command.run(&settings))),
        Command::Pause(Pause { projection, reason }) => {
            end(block_on(pause(&settings, &projection, &reason)))
        }
        Command::Resume(OneProjection { projection }) => {
            end(block_on(resume(&settings, &projection)))
        }
        Command::Rebuild(arguments) => answer(block_on(rebuild(&settings, &arguments))),
        Command::Rollback(OneProjection { projection }) => {
            end(block_on(roll_back(&settings, &projection)))
        }
        Command::DropOld(OneProjection { projection }) => {
            end(block_on(drop_old(&settings, &projection)))
        }
        Command::Topology(command) => end(block_on(command.run(&settings))),
        Command::Config(ConfigCommand::Show) => {
            print_settings(&shown);
            ExitCode::SUCCESS
        }
        Command::Healthcheck => end(healthcheck(settings.http_listen)),
    }
}

/// For commands that say whether something is as it should be.
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

async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let projections = load(settings)?;
    let mut session = open_mysql(settings).await?;
    session.migrate().await.map_err(Trouble::from)?;
    for projection in projections {
        let model = ReadModel::new(projection);
        let migrated = session
            .migrate_projection(&model.projection, &model.ledger)
            .await
            .map_err(Trouble::from)?;
        let name = model.name();
        say(&match migrated {
            Migrated::Created => format!("{name}: tables made"),
            Migrated::Unchanged => format!("{name}: up to date"),
            Migrated::Differs => format!(
                "{name}: tables.sql has changed since the tables were made, and they were left \
                 alone: change them by hand too, or drop all of the projection's tables, also \
                 those that start with {name}__, and migrate again to build it anew"
            ),
        });
    }
    session.close().await;
    Ok(())
}

async fn show(settings: &Settings, arguments: &Show) -> Result<(), Failure> {
    let models = models(settings, std::slice::from_ref(&arguments.projection))?;
    let mut session = open_mysql(settings).await?;
    for table in models.iter().flat_map(|model| &model.projection.tables) {
        let rows = session.first_rows(&table.name, arguments.limit).await.map_err(Trouble::from)?;
        say(&format!("{}\n{rows}", table.name));
    }
    session.close().await;
    Ok(())
}
