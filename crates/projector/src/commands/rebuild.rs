//! `projector rebuild`, `rollback`, `drop-old` and `verify`.

use clap::Args;
use daemon::Failure;

use super::{Format, failure, model, open_mysql, say};
use crate::Settings;
use crate::mysql::Databases;
use crate::rebuild::Rebuilder;
use crate::run::{mysql_options, store_options};

#[derive(Args, Debug)]
pub(crate) struct Rebuild {
    /// The projection.
    projection: String,
    /// Events a second at most; 0 for as many as it goes.
    #[arg(long, default_value_t = 0)]
    throttle: u32,
    /// Put the new tables in service even if some streams cannot be applied.
    #[arg(long)]
    allow_parked: bool,
    /// Give up a rebuild that was interrupted, and drop its tables.
    #[arg(long, conflicts_with_all = ["throttle", "allow_parked"])]
    cancel: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The projection.
    projection: String,
    /// Make rows that differ what they must be.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    format: Format,
}

/// Compares a read model with the event store; says whether it is right.
pub(crate) async fn verify(settings: &Settings, arguments: &Verify) -> Result<bool, Failure> {
    let Verify { projection, repair, format } = arguments;
    let drift = rebuilder(settings, projection, 0).await?.verify(*repair).await?;
    format.print(&drift, |drift| {
        let lines: Vec<String> = drift.iter().map(ToString::to_string).collect();
        match (drift.len(), repair) {
            (0, _) => format!("{projection} is what the event store gives"),
            (rows, true) => {
                format!("{}\n{rows} rows were wrong and are right now", lines.join("\n"))
            }
            (rows, false) => format!("{}\n{rows} rows are wrong", lines.join("\n")),
        }
    })?;
    Ok(drift.is_empty() || *repair)
}

async fn rebuilder(
    settings: &Settings,
    projection: &str,
    throttle: u32,
) -> Result<Rebuilder, Failure> {
    let mut session = open_mysql(settings).await?;
    let database = session.database().await.map_err(failure)?;
    session.close().await;
    Ok(Rebuilder {
        projection: model(settings, projection)?.projection,
        mysql: mysql_options(settings)?,
        store: store_options(settings)?,
        databases: Databases::beside(&database),
        throttle,
    })
}

/// Builds a read model anew and puts it in service.
pub(crate) async fn rebuild(settings: &Settings, arguments: &Rebuild) -> Result<(), Failure> {
    let Rebuild { projection, throttle, allow_parked, cancel } = arguments;
    let rebuilder = rebuilder(settings, projection, *throttle).await?;
    if *cancel {
        rebuilder.cancel().await?;
        say(&format!("the rebuild of {projection} is cancelled"));
        return Ok(());
    }
    rebuilder.rebuild(*allow_parked).await?;
    say(&format!(
        "{projection} is rebuilt; `projector rollback {projection}` puts the tables of before back, \
         `projector drop-old {projection}` drops them"
    ));
    Ok(())
}

/// Puts the tables of before back in service.
pub(crate) async fn roll_back(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, 0).await?.roll_back().await?;
    say(&format!("{projection} has the tables of before its rebuild, with all events since"));
    Ok(())
}

/// Drops the tables that a rebuild or a rollback has taken out of service.
pub(crate) async fn drop_old(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, 0).await?.drop_old().await?;
    say(&format!("the tables of {projection} that are not in service are dropped"));
    Ok(())
}
