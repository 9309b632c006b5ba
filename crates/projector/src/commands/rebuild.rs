//! `projector rebuild`, `rollback`, `drop-old` and `verify`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use daemon::{Exit, Failure};
use domain_events::StreamId;

use super::{Format, failure, model, open_mysql, say};
use crate::Settings;
use crate::in_place::Folded;
use crate::mysql::{Databases, Wishes};
use crate::rebuild::{Rebuilder, Report};
use crate::run::{host, mysql_options, store_options};

#[derive(Args, Debug)]
pub(crate) struct Rebuild {
    /// The projection.
    projection: String,
    /// Events a second at most; 0 for as many as it goes.
    #[arg(long, default_value_t = 0)]
    throttle: u32,
    /// Wait while the live read model is so many seconds behind; 0 to go on whatever it is.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    max_lag: u32,
    /// Put the new tables in service even if some streams cannot be applied.
    #[arg(long)]
    allow_parked: bool,
    /// Give up a rebuild, wherever it runs, and drop its tables.
    #[arg(long, conflicts_with_all = ["throttle", "max_lag", "allow_parked", "dry_run", "stream", "streams_file"])]
    cancel: bool,
    /// Only say what a rebuild would do: how long it takes, which events leave no trace, and which
    /// streams would be parked. Exit code 1 when one would.
    #[arg(long, conflicts_with_all = ["throttle", "max_lag", "allow_parked", "stream", "streams_file"])]
    dry_run: bool,
    /// Only fold these streams anew, in the live tables.
    #[arg(long, num_args = 1.., value_name = "ID", conflicts_with_all = ["throttle", "max_lag", "allow_parked"])]
    stream: Vec<String>,
    /// Only those of a file, one in each line.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["throttle", "max_lag", "allow_parked"])]
    streams_file: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The projection.
    projection: String,
    /// Make rows that differ what they must be.
    #[arg(long)]
    repair: bool,
    /// Only so many streams, chosen at random, where each row belongs to one stream.
    #[arg(long, value_name = "STREAMS")]
    sample: Option<u32>,
    #[command(flatten)]
    format: Format,
}

/// Compares a read model with the event store; says whether it is right.
pub(crate) async fn verify(settings: &Settings, arguments: &Verify) -> Result<bool, Failure> {
    let Verify { projection, repair, sample, format } = arguments;
    let rebuilder = rebuilder(settings, projection, *format).await?;
    let found = rebuilder.verify(*sample, *repair).await?;
    format.print(&found, |found| {
        let mut lines: Vec<String> = found.drift.iter().map(ToString::to_string).collect();
        lines.push(match (found.drift.len(), repair) {
            (0, _) => format!("{projection} is what the event store gives"),
            (rows, true) => format!("{rows} rows were wrong and are right now"),
            (rows, false) => format!("{rows} rows are wrong"),
        });
        lines.extend(found.streams.iter().map(ToString::to_string));
        if !found.streams.is_empty() {
            let count = found.streams.len();
            lines.push(format!(
                "the bookkeeping of {count} streams does not fit: `projector rebuild {projection}`"
            ));
        }
        lines.join("\n")
    })?;
    Ok(found.streams.is_empty() && (found.is_empty() || *repair))
}

async fn rebuilder(
    settings: &Settings,
    projection: &str,
    format: Format,
) -> Result<Rebuilder, Failure> {
    let mut session = open_mysql(settings).await?;
    let database = session.database().await.map_err(failure)?;
    session.close().await;
    Ok(Rebuilder {
        projection: model(settings, projection)?.projection,
        mysql: mysql_options(settings)?,
        store: store_options(settings)?,
        databases: Databases::beside(&database),
        report: if format.json { Report::Quiet } else { Report::of_command() },
        host: host(),
    })
}

/// Builds a read model anew and puts it in service, or does a part of that. Says whether every stream
/// could be applied.
pub(crate) async fn rebuild(settings: &Settings, arguments: &Rebuild) -> Result<bool, Failure> {
    let Rebuild { projection, throttle, max_lag, allow_parked, format, .. } = arguments;
    let streams = arguments.streams()?;
    let rebuilder = rebuilder(settings, projection, *format).await?;
    if arguments.cancel {
        rebuilder.cancel().await?;
        say(&format!("the rebuild of {projection} is cancelled"));
        return Ok(true);
    }
    if arguments.dry_run {
        let found = rebuilder.dry_run().await?;
        format.print(&found, ToString::to_string)?;
        return Ok(found.is_clean());
    }
    if let Some(streams) = streams {
        let folded = rebuilder.fold_in_place(&streams, |folded| {
            if !format.json {
                say(&told(folded));
            }
        });
        let folded = folded.await?;
        if format.json {
            format.print(&folded, |_| String::new())?;
        }
        return Ok(folded.iter().all(|folded| folded.parked.is_none()));
    }
    if !format.json {
        say(&format!(
            "building {projection} anew; if this is interrupted, a running projector goes on with it, \
             and `projector rebuild {projection} --cancel` gives it up"
        ));
    }
    let (throttle, max_lag, allow_parked) = (*throttle, *max_lag, *allow_parked);
    rebuilder.rebuild(Wishes { throttle, max_lag, allow_parked }).await?;
    if !format.json {
        say(&format!(
            "{projection} is rebuilt; `projector rollback {projection}` puts the tables of before back, \
             `projector drop-old {projection}` drops them"
        ));
    }
    Ok(true)
}

impl Rebuild {
    /// The streams that are to be folded anew; `None` for the whole read model.
    fn streams(&self) -> Result<Option<Vec<StreamId>>, Failure> {
        if self.stream.is_empty() && self.streams_file.is_none() {
            return Ok(None);
        }
        let mut names = self.stream.clone();
        if let Some(file) = &self.streams_file {
            names.extend(lines(file).map_err(|error| Failure::new(Exit::Data, error))?);
        }
        let streams: Result<Vec<_>, _> = names.into_iter().map(StreamId::new).collect();
        Ok(Some(streams.map_err(|error| Failure::new(Exit::Data, error))?))
    }
}

fn lines(file: &Path) -> Result<Vec<String>, anyhow::Error> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("the file {} cannot be read", file.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn told(folded: &Folded) -> String {
    let Folded { stream_id, events, parked } = folded;
    match (events, parked) {
        (0, None) => {
            format!("{stream_id}: the event store has no such stream; its rows are removed")
        }
        (events, None) => format!("{stream_id}: {events} events"),
        (events, Some(parked)) => format!(
            "{stream_id}: {events} events, then parked at version {}: {}",
            parked.version.get(),
            parked.reason
        ),
    }
}

/// Puts the tables of before back in service.
pub(crate) async fn roll_back(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, Format::default()).await?.roll_back().await?;
    say(&format!("{projection} has the tables of before its rebuild, with all events since"));
    Ok(())
}

/// Drops the tables that a rebuild or a rollback has taken out of service.
pub(crate) async fn drop_old(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, Format::default()).await?.drop_old().await?;
    say(&format!("the tables of {projection} that are not in service are dropped"));
    Ok(())
}
