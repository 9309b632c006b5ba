//! `projector reconcile`.

use std::fmt::Write;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use daemon::Failure;

use serde::Serialize;

use super::{failure, models, open_mysql, open_store};
use crate::Settings;
use crate::heal::{self, Line, Reconciliation};
use crate::history::{Diverged, diverged_streams};
use daemon::output::{Format, Progress};

/// The most streams in the text; JSON has all of them.
const EXAMPLES: usize = 100;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  projector reconcile order_summary --since 24h --bucket 1h")]
pub(crate) struct Reconcile {
    /// The projections. Default: all configured ones.
    projections: Vec<String>,
    /// How far back to count.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    since: Duration,
    /// The length of a line's span of time, at least 1s.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    bucket: Duration,
    /// Leave out younger events: they may still be on their way.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    grace: Duration,
    #[command(flatten)]
    format: Format,
}

/// The result for one projection.
#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    counted: Reconciliation,
    /// The streams whose last applied event the event store does not have, if its position is in the span of time.
    diverged: Vec<Diverged>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.counted.missing() == 0 && self.diverged.is_empty()
    }
}

/// Counts the events that were appended, published and applied, and compares the ids of the last applied ones.
/// Returns whether none is missing and none is foreign to the event store.
pub(crate) async fn reconcile(settings: &Settings, arguments: &Reconcile) -> Result<bool, Failure> {
    let Reconcile { projections, since, bucket, grace, format } = arguments;
    let mut session = open_mysql(settings).await?;
    let mut store = open_store(settings).await?;
    let now = Utc::now();
    let span = (now - *since, now - *grace);
    let mut all = Vec::new();
    for model in models(settings, projections)? {
        // A tiny bucket would give an endless list.
        let bucket = (*bucket).max(Duration::from_secs(1));
        let mut progress = Progress::begin();
        let report = |position| {
            progress
                .report(|| format!("{}: events counted up to position {position}", model.name()));
        };
        let counted =
            heal::reconcile(&mut session, &mut store, &model, span, bucket, report).await?;
        let after = store.position_before(span.0).await.map_err(failure)?;
        let diverged = diverged_streams(&mut session, &mut store, &model, Some(after)).await?;
        all.push(Found { counted, diverged });
    }
    store.close().await;
    session.close().await;
    format.print(&all, |all| all.iter().map(text).collect())?;
    Ok(all.iter().all(Found::is_empty))
}

fn text(found: &Found) -> String {
    let mut text = String::new();
    write_counts(&mut text, &found.counted)
        .and_then(|()| write_diverged(&mut text, &found.diverged))
        .expect("writing to a String cannot fail");
    text
}

fn write_counts(text: &mut String, found: &Reconciliation) -> std::fmt::Result {
    writeln!(
        text,
        "{}\n  {:20} {:20} {:>10} {:>10} {:>10} {:>8} {:>8}",
        found.projection,
        "category",
        "from (UTC)",
        "appended",
        "published",
        "applied",
        "parked",
        "missing"
    )?;
    for Line { category, from, appended, published, applied, parked, missing } in &found.lines {
        let from = from.format("%Y-%m-%d %H:%M:%S");
        writeln!(
            text,
            "  {category:20} {from:20} {appended:>10} {published:>10} {applied:>10} {parked:>8} \
             {missing:>8}"
        )?;
    }
    for event in &found.missing {
        writeln!(
            text,
            "  missing: {} {} at position {}, version {} of {}",
            event.event_type, event.event_id, event.position, event.stream_version, event.stream_id
        )?;
    }
    let listed = i64::try_from(found.missing.len()).unwrap_or(i64::MAX);
    if found.missing() > listed {
        writeln!(text, "  and {} more", found.missing() - listed)?;
    }
    Ok(())
}

fn write_diverged(text: &mut String, diverged: &[Diverged]) -> std::fmt::Result {
    for Diverged { stream_id, version, applied, .. } in diverged.iter().take(EXAMPLES) {
        writeln!(
            text,
            "  not in the event store: {applied}, applied as version {version} of {stream_id}"
        )?;
    }
    if diverged.len() > EXAMPLES {
        writeln!(text, "  and {} more", diverged.len() - EXAMPLES)?;
    }
    Ok(())
}
