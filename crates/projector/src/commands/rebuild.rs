//! `projector rebuild`, `rollback` and `drop-old`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use daemon::{Exit, Failure};
use domain_events::StreamId;
use read_model::{Databases, Job, RebuildOptions};
use serde::Serialize;

use super::{failure, model, models, open_mysql};
use crate::Settings;
use crate::context::host;
use crate::rebuild::{Folded, Rebuilder, Report, text};
use daemon::output::{Format, counted, say};

/// An action, or a name: `rebuild NAME` is the short form of `rebuild start NAME`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  projector rebuild start order_summary --max-lag 10\n  projector rebuild \
                  status\n  projector rebuild rollback order_summary"
)]
pub(crate) struct Rebuild {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    start: Option<Start>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Build new tables from the event store, and swap them with the live tables.
    ///
    /// Applications read and write meanwhile. If the command is interrupted, any running projector
    /// with the same files continues the rebuild. So does the command when you call it again.
    #[command(
        after_help = "Examples:\n  projector rebuild start order_summary --dry-run\n  projector \
                            rebuild start order_summary --throttle 5000"
    )]
    Start(Start),
    /// Show the last rebuild of each projection.
    #[command(after_help = "Example:\n  projector rebuild status --json")]
    Status {
        /// The projections. Default: all configured ones.
        projections: Vec<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Cancel a rebuild, whichever process runs it, and drop its tables.
    #[command(after_help = "Example:\n  projector rebuild cancel order_summary")]
    Cancel {
        /// The projection.
        projection: String,
    },
    /// Put the previous tables back in service, after applying all events since the rebuild.
    #[command(after_help = "Example:\n  projector rebuild rollback order_summary")]
    Rollback {
        /// The projection.
        projection: String,
    },
    /// Drop the tables that a rebuild or a rollback has taken out of service.
    #[command(after_help = "Example:\n  projector rebuild cleanup order_summary")]
    Cleanup {
        /// The projection.
        projection: String,
    },
}

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Start {
    /// The projection.
    projection: String,
    /// Apply at most this many events per second. 0 means no limit.
    #[arg(long, default_value_t = 0)]
    throttle: u32,
    /// Wait while the live read model lags by more than this many seconds. 0 means never.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    max_lag: u32,
    /// Swap the tables even if the new handlers cannot apply some streams.
    #[arg(long)]
    allow_parked: bool,
    /// Rebuild even if somebody has added columns, indexes or partitions to the live tables: the new
    /// tables will not have them.
    #[arg(long)]
    drop_extras: bool,
    /// The same as `rebuild cancel`.
    #[arg(long, hide = true, conflicts_with_all = ["throttle", "max_lag", "allow_parked", "dry_run", "stream", "streams_file"])]
    cancel: bool,
    /// Report what a rebuild would do: how long it takes, which events have no handler, and which
    /// streams would be parked. Exit code 1 if any would. Changes nothing.
    #[arg(long, conflicts_with_all = ["throttle", "max_lag", "allow_parked", "stream", "streams_file"])]
    dry_run: bool,
    /// Rebuild only these streams, in the live tables.
    #[arg(long, num_args = 1.., value_name = "ID", conflicts_with_all = ["throttle", "max_lag", "allow_parked"])]
    stream: Vec<String>,
    /// Rebuild only the streams in this file, one per line, in the live tables.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["throttle", "max_lag", "allow_parked"])]
    streams_file: Option<PathBuf>,
    /// Print JSON, for scripts.
    // Not a flattened `Format`: clap ignores an optional group that contains another group.
    #[arg(long)]
    json: bool,
}

impl Rebuild {
    /// Runs the action. Returns whether every stream could be applied.
    pub(crate) async fn run(&self, settings: &Settings) -> Result<bool, Failure> {
        match (&self.action, &self.start) {
            (Some(Action::Start(start)), _) | (None, Some(start)) => start.run(settings).await,
            (Some(Action::Status { projections, format }), _) => {
                status(settings, projections, *format).await.map(|()| true)
            }
            (Some(Action::Cancel { projection }), _) => {
                cancel(settings, projection).await.map(|()| true)
            }
            (Some(Action::Rollback { projection }), _) => {
                roll_back(settings, projection).await.map(|()| true)
            }
            (Some(Action::Cleanup { projection }), _) => {
                cleanup(settings, projection).await.map(|()| true)
            }
            (None, None) => Ok(true),
        }
    }
}

pub(crate) async fn rebuilder(
    settings: &Settings,
    projection: &str,
    format: Format,
) -> Result<Rebuilder, Failure> {
    let mut session = open_mysql(settings).await?;
    let database = session.database().await.map_err(failure)?;
    session.close().await;
    Ok(Rebuilder {
        definition: model(settings, projection)?.definition(),
        mysql: settings.mysql()?,
        store: settings.store()?,
        databases: Databases::beside(&database),
        report: if format.json { Report::Quiet } else { Report::of_command() },
        host: host(),
    })
}

impl Start {
    async fn run(&self, settings: &Settings) -> Result<bool, Failure> {
        let Self { projection, throttle, max_lag, allow_parked, json, .. } = self;
        let format = Format { json: *json };
        if self.cancel {
            return cancel(settings, projection).await.map(|()| true);
        }
        let streams = self.streams()?;
        let rebuilder = rebuilder(settings, projection, format).await?;
        if self.dry_run {
            let found = rebuilder.dry_run().await?;
            format.print(&found, ToString::to_string)?;
            return Ok(found.is_clean());
        }
        if let Some(streams) = streams {
            let folded = rebuilder.fold_in_place(&streams, |folded| {
                if !format.json {
                    say(&line(folded));
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
                "rebuilding {projection}; if this command is interrupted, a running projector continues the \
                 rebuild. To cancel it, run `projector rebuild cancel {projection}`"
            ));
        }
        let (throttle, max_lag, allow_parked) = (*throttle, *max_lag, *allow_parked);
        let options = RebuildOptions { throttle, max_lag, allow_parked };
        rebuilder.rebuild(options, self.drop_extras).await?;
        if !format.json {
            say(&format!(
                "{projection} is rebuilt; `projector rebuild rollback {projection}` puts the previous tables \
                 back, `projector rebuild cleanup {projection}` drops them"
            ));
        }
        Ok(true)
    }

    /// The streams to rebuild; `None` for the whole read model.
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

fn line(folded: &Folded) -> String {
    let Folded { stream_id, events, parked } = folded;
    match (events, parked) {
        (0, None) => {
            format!("{stream_id}: the event store has no such stream; its rows were removed")
        }
        (events, None) => format!("{stream_id}: {}", counted(events, "event", "events")),
        (events, Some(parked)) => format!(
            "{stream_id}: {}, then parked at version {}: {}",
            counted(events, "event", "events"),
            parked.version.get(),
            parked.reason
        ),
    }
}

/// The last rebuild of a projection.
#[derive(Serialize)]
struct Last {
    projection: String,
    rebuild: Option<Job>,
}

async fn status(settings: &Settings, names: &[String], format: Format) -> Result<(), Failure> {
    let mut session = open_mysql(settings).await?;
    let mut all = Vec::new();
    for model in models(settings, names)? {
        let rebuild = session.job(&model.ledger).await.map_err(failure)?;
        all.push(Last { projection: model.name().to_owned(), rebuild });
    }
    session.close().await;
    format.print(&all, |all| all.iter().map(last).collect::<Vec<_>>().join("\n"))
}

fn last(Last { projection, rebuild }: &Last) -> String {
    let Some(job) = rebuild else { return format!("{projection}: never rebuilt") };
    let (state, host) = (job.state.as_str().replace('_', " "), &job.host);
    let since = job.changed_at.format("%Y-%m-%d %H:%M:%S");
    let reason = job.reason.as_ref().map_or_else(String::new, |reason| format!("\n  {reason}"));
    let progress = if job.state.is_unfinished() { text(&job.progress) } else { String::new() };
    let progress = if progress.is_empty() { progress } else { format!(", {progress}") };
    format!("{projection}: {state} on {host}, since {since} UTC{progress}{reason}")
}

async fn cancel(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, Format::default()).await?.cancel().await?;
    say(&format!("the rebuild of {projection} is cancelled, and its tables are dropped"));
    Ok(())
}

/// Puts the previous tables back in service.
pub(crate) async fn roll_back(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, Format::default()).await?.roll_back().await?;
    say(&format!(
        "the previous tables of {projection} are in service again, with all events since the rebuild"
    ));
    Ok(())
}

/// Drops the tables that a rebuild or a rollback has taken out of service.
pub(crate) async fn cleanup(settings: &Settings, projection: &str) -> Result<(), Failure> {
    rebuilder(settings, projection, Format::default()).await?.drop_previous().await?;
    say(&format!("the tables of {projection} that are not in service are dropped"));
    Ok(())
}
