//! `projector reconcile-history`.

use std::fmt::Write;

use clap::Args;
use daemon::Failure;
use domain_events::StreamId;
use serde::Serialize;

use super::rebuild::rebuilder;
use super::{failure, model, open_mysql, open_store};
use crate::Settings;
use crate::error::Error as WorkError;
use crate::history::{Diverged, common_history, diverged_streams, end_divergence};
use daemon::output::{Format, actor, counted};

/// The most streams in the text; JSON has all of them.
const EXAMPLES: usize = 100;
/// The number of streams that are looked up at once.
const PAGE: usize = 1_000;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  projector reconcile-history order_summary\n  projector reconcile-history \
                  order_summary --repair"
)]
pub(crate) struct ReconcileHistory {
    /// The projection.
    projection: String,
    /// Remove the rows of these streams, apply the events that the event store has, and resume the projection.
    /// Each row must belong to one stream; otherwise run `projector rebuild start`.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Found {
    projection: String,
    /// Whether the projection is paused until the divergence is reconciled.
    paused: bool,
    streams: Vec<Stream>,
    /// Why the streams cannot be applied again in place, so that a rebuild is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    rebuild_because: Option<String>,
    /// Whether the streams were applied again, and the projection was resumed.
    repaired: bool,
}

#[derive(Debug, Serialize)]
struct Stream {
    #[serde(flatten)]
    diverged: Diverged,
    /// The last version in the event store; 0 if it does not have the stream.
    stored_version: i64,
}

/// Lists the streams whose last applied event the event store does not have, and applies them again on request.
/// Returns whether the read model agrees with the event store now.
pub(crate) async fn reconcile_history(
    settings: &Settings,
    arguments: &ReconcileHistory,
) -> Result<bool, Failure> {
    let ReconcileHistory { projection, repair, format } = arguments;
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    session.require_tables(&model.projection, &model.ledger).await.map_err(failure)?;
    model.prepare(&mut session).await.map_err(failure)?;
    WorkError::require_in_service(&model)?;
    let mut store = open_store(settings).await?;
    let paused = session.is_diverged(&model.ledger).await.map_err(failure)?;
    let diverged = diverged_streams(&mut session, &mut store, &model, None).await?;
    let common = common_history(&mut session, &model, &diverged).await?;
    let owned = model.forms().stream_columns(&model.projection);
    let rebuild_because = owned.err().filter(|_| !diverged.is_empty());
    let is_repaired = *repair && rebuild_because.is_none() && (paused || !diverged.is_empty());
    let streams = with_stored_versions(&mut store, diverged).await?;
    if is_repaired {
        let names = ids(&streams)?;
        rebuilder(settings, projection, *format).await?.fold_in_place(&names, |_| ()).await?;
        end_divergence(&mut session, &mut store, &model, common).await?;
        let reason = counted(streams.len(), "stream had diverged", "streams had diverged");
        let actor = actor();
        let audited = session.audit(&model.ledger, None, "reconcile-history", &reason, &actor);
        audited.await.map_err(failure)?;
    }
    store.close().await;
    session.close().await;
    let projection = projection.clone();
    let found = Found { projection, paused, streams, rebuild_because, repaired: is_repaired };
    format.print(&found, text)?;
    Ok(is_repaired || (found.streams.is_empty() && !paused))
}

fn ids(streams: &[Stream]) -> Result<Vec<StreamId>, Failure> {
    let id = |stream: &Stream| StreamId::new(stream.diverged.stream_id.as_str());
    let ids: Result<_, _> = streams.iter().map(id).collect();
    ids.map_err(|error| Failure::new(daemon::Exit::Data, error))
}

async fn with_stored_versions(
    store: &mut event_store::Session,
    diverged: Vec<Diverged>,
) -> Result<Vec<Stream>, Failure> {
    let mut versions = Vec::new();
    for page in diverged.chunks(PAGE) {
        let names: Vec<&str> = page.iter().map(|it| it.stream_id.as_str()).collect();
        versions.extend(store.last_versions(&names).await.map_err(failure)?);
    }
    let stream = |(diverged, stored_version)| Stream { diverged, stored_version };
    Ok(diverged.into_iter().zip(versions).map(stream).collect())
}

fn text(found: &Found) -> String {
    let mut text = String::new();
    write_text(&mut text, found).expect("writing to a String cannot fail");
    text
}

fn write_text(text: &mut String, found: &Found) -> std::fmt::Result {
    let Found { projection, paused, streams, rebuild_because, repaired } = found;
    for Stream { diverged, stored_version } in streams.iter().take(EXAMPLES) {
        let Diverged { stream_id, version, applied, stored, .. } = diverged;
        match stored {
            Some(stored) => writeln!(
                text,
                "{stream_id}: replaced: version {version} was applied from event {applied}, but the event \
                 store has {stored}"
            )?,
            None => writeln!(
                text,
                "{stream_id}: phantom: version {version} was applied from event {applied}, but the event store \
                 ends at version {stored_version}"
            )?,
        }
    }
    if streams.len() > EXAMPLES {
        writeln!(text, "and {} more; --json lists all of them", streams.len() - EXAMPLES)?;
    }
    let count = counted(streams.len(), "stream", "streams");
    if *repaired {
        return writeln!(
            text,
            "{count} of {projection} had diverged; the events of the event store are applied, and {projection} goes on"
        );
    }
    match (streams.len(), paused) {
        (0, false) => {
            writeln!(text, "{projection} has applied no event that the event store lacks")
        }
        (0, true) => writeln!(
            text,
            "no lost event is applied last in a stream of {projection}; run `projector reconcile-history \
             {projection} --repair` to resume it"
        ),
        _ => match rebuild_because {
            Some(reason) => writeln!(
                text,
                "{count} of {projection} diverged. A rebuild is due, because {reason}: run `projector rebuild \
                 start {projection}`, then `projector resume {projection}`"
            ),
            None => writeln!(
                text,
                "{count} of {projection} diverged; --repair applies the events of the event store and resumes it"
            ),
        },
    }
}
