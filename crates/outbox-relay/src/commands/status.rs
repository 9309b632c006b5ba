//! `outbox-relay status`.

use std::fmt::Write;

use daemon::cause::{Cause, State};
use daemon::output::{Format, counted};
use daemon::{Exit, Failure};
use event_store::{Backlog, Group, Status};
use serde::Serialize;

use super::causes::causes;
use super::{STATEMENT_LIMIT, failure, open};
use crate::Settings;

/// The text shows this many categories; the JSON shows all.
const CATEGORIES: usize = 10;

#[derive(Serialize)]
struct Report {
    state: State,
    causes: Vec<Cause>,
    #[serde(flatten)]
    status: Status,
}

/// Prints the state of the outbox. The exit code says whether everything works.
pub(crate) async fn status(settings: &Settings, format: Format) -> Result<Exit, Failure> {
    let mut session = open(settings, STATEMENT_LIMIT).await?;
    let status = session.status().await.map_err(failure)?;
    session.close().await;
    let causes = causes(&status);
    let state = causes.first().map_or(State::Ok, |cause| cause.state);
    format.print(&Report { state, causes, status }, text)?;
    Ok(state.exit())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    writeln!(text, "state     {}", report.state.word()).expect("writing to a String cannot fail");
    for cause in &report.causes {
        writeln!(text, "- {}", cause.line()).expect("writing to a String cannot fail");
    }
    write_text(&mut text, &report.status).expect("writing to a String cannot fail");
    text
}

fn write_text(text: &mut String, status: &Status) -> std::fmt::Result {
    writeln!(text, "pending   {}", count(status.pending))?;
    if status.oldest_age_seconds > 0.0 {
        writeln!(text, "oldest    {:.1} s", status.oldest_age_seconds)?;
    }
    if status.oldest_held_age_seconds > 0.0 {
        writeln!(text, "oldest held {:.1} s", status.oldest_held_age_seconds)?;
    }
    writeln!(
        text,
        "held      {}, behind an event of their stream that could not be published",
        count(status.held)
    )?;
    writeln!(text, "delayed   {}, to be published at a later time", count(status.delayed))?;
    let rates = status.rates;
    writeln!(
        text,
        "rates     {:.0} inserted/s, {:.0} published/s",
        rates.inserted, rates.published
    )?;
    if !status.categories.is_empty() {
        let categories = status.categories.iter().take(CATEGORIES);
        let list: Vec<String> =
            categories.map(|Group { name, events }| format!("{name} {events}")).collect();
        writeln!(text, "pending by category: {}", list.join(", "))?;
        let lanes: Vec<String> =
            status.lanes.iter().map(|Group { name, events }| format!("{name}:{events}")).collect();
        writeln!(text, "pending by lane: {}", lanes.join(" "))?;
    }
    for streams in &status.waiting {
        let state = if streams.parked { "parked" } else { "waiting" };
        let number = counted(streams.streams, "stream", "streams");
        writeln!(text, "{state:<9} {number}: {}", streams.reason)?;
    }
    for writer in &status.open_writers {
        let age = writer.age_seconds.map_or_else(String::new, |age| format!(" for {age:.0} s"));
        writeln!(text, "open      a transaction holds up the fence{age}: {writer}")?;
    }
    if status.waiting.iter().any(|streams| streams.parked) {
        writeln!(text, "`outbox-relay parked list` shows the streams that need a decision")?;
    }
    Ok(())
}

fn count(number: i64) -> String {
    let more = if number >= Backlog::COUNTED_AT_MOST { " or more" } else { "" };
    format!("{number}{more}")
}
