//! `projector status`.

use std::fmt::Write;

use clap::Args;
use daemon::Failure;
use read_model::{Error as ReadModelError, Instance, Job, JobState, ReadModel, Session};
use serde::Serialize;

use super::{failure, models, open_mysql, open_store};
use crate::Settings;
use crate::error::Error as WorkError;
use crate::history::{Lag, lag};
use crate::rebuild;
use daemon::output::Format;

#[derive(Args)]
#[command(after_help = "Example:\n  projector status order_summary --json")]
pub(crate) struct Status {
    /// The projections. Default: all configured ones.
    projections: Vec<String>,
    #[command(flatten)]
    format: Format,
}

/// The state of one projection.
#[derive(Debug, Serialize)]
struct Found {
    projection: String,
    state: State,
    /// Why it is paused, or not migrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why the files at hand are not applied, if others are in service.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<String>,
    /// The position up to which every event is known to be applied or parked.
    checkpoint: Option<i64>,
    /// The number of events that are published and not applied, without parked streams.
    lag_events: i64,
    /// The age of the oldest of them.
    lag_seconds: f64,
    parked: i64,
    conflicts: i64,
    /// The number of events that were lost on the way and read from the event store.
    healed: u64,
    partitions: u16,
    instances: Vec<Instance>,
    /// The last rebuild.
    #[serde(skip_serializing_if = "Option::is_none")]
    rebuild: Option<Job>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    NotMigrated,
    Paused,
    NoInstance,
    ApplyingHistory,
    Following,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::NotMigrated => "not migrated: run `projector migrate`",
            Self::Paused => "paused",
            Self::NoInstance => "no instance follows it; run `projector run`",
            Self::ApplyingHistory => "applying the history",
            Self::Following => "following",
        }
    }
}

/// Prints the state of projections. Returns whether all of them follow their queues and have no parked stream.
pub(crate) async fn status(settings: &Settings, arguments: &Status) -> Result<bool, Failure> {
    let Status { projections: names, format } = arguments;
    let mut session = open_mysql(settings).await?;
    let mut store = open_store(settings).await?;
    let mut all = Vec::new();
    for model in models(settings, names)? {
        all.push(of(&mut session, &mut store, &model).await?);
    }
    store.close().await;
    session.close().await;
    format.print(&all, |all| all.iter().map(text).collect())?;
    Ok(all.iter().all(|status| status.state == State::Following && status.parked == 0))
}

async fn of(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
) -> Result<Found, Failure> {
    let ledger = &model.ledger;
    let mut status = Found {
        projection: model.name().to_owned(),
        state: State::NotMigrated,
        reason: None,
        files: None,
        checkpoint: None,
        lag_events: 0,
        lag_seconds: 0.0,
        parked: 0,
        conflicts: 0,
        healed: 0,
        partitions: model.projection.partitions,
        instances: Vec::new(),
        rebuild: None,
    };
    match session.require_tables(&model.projection, ledger).await {
        Ok(()) => {}
        Err(
            error @ (ReadModelError::NotMigrated { .. }
            | ReadModelError::Outdated { .. }
            | ReadModelError::OutdatedBookkeeping { .. }),
        ) => {
            status.reason = Some(error.to_string());
            return Ok(status);
        }
        Err(error) => return Err(failure(error)),
    }
    status.files = match model.prepare(session).await {
        Ok(()) => WorkError::require_in_service(model).err().map(|error| error.to_string()),
        Err(error @ ReadModelError::SwapNotRecorded { .. }) => Some(error.to_string()),
        Err(error) => return Err(failure(error)),
    };
    (status.parked, status.conflicts) = session.count_parked(ledger).await.map_err(failure)?;
    status.healed = session.healed(ledger).await.map_err(failure)?;
    status.instances = session.instances(ledger).await.map_err(failure)?;
    let paused = session.paused(ledger).await.map_err(failure)?;
    let checkpoint = session.checkpoint(ledger).await.map_err(failure)?;
    status.state = match (&paused, checkpoint) {
        (Some(_), _) => State::Paused,
        (None, Some(checkpoint)) if checkpoint.replay_until.is_some() => State::ApplyingHistory,
        (None, None) => State::NoInstance,
        (None, Some(_)) if status.instances.is_empty() => State::NoInstance,
        (None, Some(_)) => State::Following,
    };
    status.reason = paused.map(|(reason, _since)| reason);
    status.checkpoint = checkpoint.map(|checkpoint| checkpoint.position.get());
    Lag { events: status.lag_events, seconds: status.lag_seconds } =
        lag(session, store, model).await?;
    status.rebuild = session.job(ledger).await.map_err(failure)?;
    Ok(status)
}

fn text(status: &Found) -> String {
    let mut text = String::new();
    write_text(&mut text, status).expect("writing to a String cannot fail");
    text
}

fn write_text(text: &mut String, status: &Found) -> std::fmt::Result {
    let Found { projection, state, lag_events, lag_seconds, parked, conflicts, healed, .. } =
        status;
    writeln!(text, "{projection}: {}", state.text())?;
    if let Some(reason) = &status.reason {
        writeln!(text, "  reason      {reason}")?;
    }
    if let Some(files) = &status.files {
        writeln!(text, "  files       {files}")?;
    }
    writeln!(text, "  lag         {lag_events} events, {lag_seconds:.1} s")?;
    writeln!(text, "  parked      {parked} streams, {conflicts} of them in conflict")?;
    writeln!(text, "  healed      {healed} events")?;
    for instance in &status.instances {
        let held: Vec<String> = instance.partitions.iter().map(ToString::to_string).collect();
        let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
        writeln!(text, "  {}  partitions that deliver: {held} of {}", instance.host, instance.of)?;
    }
    match &status.rebuild {
        Some(job) if job.state.is_unfinished() => writeln!(
            text,
            "  rebuild     {} on {}, {}",
            job.state.as_str().replace('_', " "),
            job.host,
            rebuild::text(&job.progress)
        ),
        Some(Job { state: JobState::Failed, reason: Some(reason), .. }) => {
            writeln!(text, "  rebuild     failed: {reason}")
        }
        _ => Ok(()),
    }
}
