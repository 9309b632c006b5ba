//! `projector reconcile`.

use std::fmt::Write;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use daemon::Failure;

use super::{models, open_mysql, open_store};
use crate::Settings;
use crate::heal::{self, Line, Reconciliation};
use crate::output::Format;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  projector reconcile order_summary --since 24h --bucket 1h")]
pub(crate) struct Reconcile {
    /// The projections; otherwise those that are configured.
    projections: Vec<String>,
    /// How far to look back.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    since: Duration,
    /// How much time is counted together.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    bucket: Duration,
    /// What is younger may still be on its way.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    grace: Duration,
    #[command(flatten)]
    format: Format,
}

/// Compares what was appended with what was published and applied; says whether nothing is missing.
pub(crate) async fn reconcile(settings: &Settings, arguments: &Reconcile) -> Result<bool, Failure> {
    let Reconcile { projections, since, bucket, grace, format } = arguments;
    let mut session = open_mysql(settings).await?;
    let mut store = open_store(settings).await?;
    let now = Utc::now();
    let span = (now - *since, now - *grace);
    let mut all = Vec::new();
    for model in models(settings, projections)? {
        // What lasts too short to be counted together would be counted for ever.
        let bucket = (*bucket).max(Duration::from_secs(1));
        all.push(heal::reconcile(&mut session, &mut store, &model, span, bucket).await?);
    }
    store.close().await;
    session.close().await;
    format.print(&all, |all| all.iter().map(text).collect())?;
    Ok(all.iter().all(|found| found.missing() == 0))
}

fn text(found: &Reconciliation) -> String {
    let mut text = String::new();
    write_text(&mut text, found).expect("writing to a String cannot fail");
    text
}

fn write_text(text: &mut String, found: &Reconciliation) -> std::fmt::Result {
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
