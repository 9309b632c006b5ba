//! `projector audit`.

use std::fmt::Write;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use daemon::Failure;

use super::{Format, models, open_mysql, open_store};
use crate::Settings;
use crate::audit::{self, Line};

#[derive(Args, Debug)]
pub(crate) struct Audit {
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
pub(crate) async fn audit(settings: &Settings, arguments: &Audit) -> Result<bool, Failure> {
    let Audit { projections, since, bucket, grace, format } = arguments;
    let mut session = open_mysql(settings).await?;
    let mut store = open_store(settings).await?;
    let now = Utc::now();
    let span = (now - *since, now - *grace);
    let mut all = Vec::new();
    for model in models(settings, projections)? {
        // What lasts too short to be counted together would be counted for ever.
        let bucket = (*bucket).max(Duration::from_secs(1));
        all.push(audit::audit(&mut session, &mut store, &model, span, bucket).await?);
    }
    store.close().await;
    session.close().await;
    format.print(&all, |all| all.iter().map(text).collect())?;
    Ok(all.iter().all(|audit| audit.missing() == 0))
}

fn text(audit: &audit::Audit) -> String {
    let mut text = String::new();
    write_text(&mut text, audit).expect("writing to a String cannot fail");
    text
}

fn write_text(text: &mut String, audit: &audit::Audit) -> std::fmt::Result {
    writeln!(
        text,
        "{}\n  {:20} {:20} {:>10} {:>10} {:>10} {:>8} {:>8}",
        audit.projection,
        "category",
        "from (UTC)",
        "appended",
        "published",
        "applied",
        "parked",
        "missing"
    )?;
    for Line { category, from, appended, published, applied, parked, missing } in &audit.lines {
        let from = from.format("%Y-%m-%d %H:%M:%S");
        writeln!(
            text,
            "  {category:20} {from:20} {appended:>10} {published:>10} {applied:>10} {parked:>8} \
             {missing:>8}"
        )?;
    }
    for event in &audit.missing {
        writeln!(
            text,
            "  missing: {} {} at position {}, version {} of {}",
            event.event_type, event.event_id, event.position, event.stream_version, event.stream_id
        )?;
    }
    let listed = i64::try_from(audit.missing.len()).unwrap_or(i64::MAX);
    if audit.missing() > listed {
        writeln!(text, "  and {} more", audit.missing() - listed)?;
    }
    Ok(())
}
