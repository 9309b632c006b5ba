//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use daemon::cli::{Common, end, print_settings};
use daemon::{Failure, healthcheck, init_logs};

use crate::apply::ReadModel;
use crate::mysql::{self, Migrated, Session};
use crate::projection::load_all;
use crate::run::{load, mysql_options, run, told};
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
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask the projector on this host whether it is ready; for containers.
    Healthcheck,
}

#[derive(Args)]
struct Check {
    /// The folder with the projections; otherwise the configured one.
    folder: Option<PathBuf>,
    /// Only what needs no server. Otherwise the tables are made, and the statements prepared, in a
    /// scratch database that is dropped again.
    #[arg(long)]
    offline: bool,
}

#[derive(Args)]
struct Show {
    /// The projection.
    projection: String,
    /// Rows of each table at most.
    #[arg(long, default_value_t = 10)]
    limit: u32,
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
        Command::Run => Servers { sources: true, mysql: true },
        Command::Migrate | Command::Show(_) | Command::Check(Check { offline: false, .. }) => {
            Servers { sources: false, mysql: true }
        }
        Command::Check(_) | Command::Config(_) | Command::Healthcheck => Servers::default(),
    };
    let reader = arguments.common.reader("PROJECTOR");
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
        Command::Check(arguments) => end(check(&settings, &arguments)),
        Command::Show(arguments) => end(show(&settings, &arguments)),
        Command::Config(ConfigCommand::Show) => {
            print_settings(&shown);
            ExitCode::SUCCESS
        }
        Command::Healthcheck => end(healthcheck(settings.http_listen)),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let projections = load(settings)?;
    let options = mysql_options(settings)?;
    let mut session = Session::connect(&options).await.map_err(Trouble::from)?;
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

#[tokio::main(flavor = "current_thread")]
async fn check(settings: &Settings, arguments: &Check) -> Result<(), Failure> {
    let folder = arguments.folder.as_ref().unwrap_or(&settings.projections_dir);
    let projections = load_all(folder, &[]).map_err(|faults| told(&faults))?;
    if !arguments.offline {
        let faults =
            mysql::check(&mysql_options(settings)?, &projections).await.map_err(Trouble::from)?;
        if !faults.is_empty() {
            return Err(told(&faults));
        }
    }
    say(&format!("{} projections: ok", projections.len()));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn show(settings: &Settings, arguments: &Show) -> Result<(), Failure> {
    let names = [arguments.projection.clone()];
    let projections =
        load_all(&settings.projections_dir, &names).map_err(|faults| told(&faults))?;
    let mut session = Session::connect(&mysql_options(settings)?).await.map_err(Trouble::from)?;
    for table in projections.iter().flat_map(|projection| &projection.tables) {
        let rows = session.first_rows(&table.name, arguments.limit).await.map_err(Trouble::from)?;
        say(&format!("{}\n{rows}", table.name));
    }
    session.close().await;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of a command")]
fn say(text: &str) {
    println!("{text}");
}
