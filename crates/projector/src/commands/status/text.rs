//! The text of `projector status`.

use std::fmt::Write;

use daemon::output::counted;
use read_model::{Job, JobState};

use super::Report;
use super::causes::Reason;
use super::found::{Condition, Facts, Found, FoundInstance};
use crate::history::Lag;
use crate::rebuild;

pub(super) fn of(report: &Report) -> String {
    let mut text = String::new();
    write_report(&mut text, report).expect("writing to a String cannot fail");
    text
}

impl Condition {
    fn text(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotMigrated => "not migrated",
            Self::Paused => "paused",
            Self::Diverged => "paused after lost events",
            Self::NoInstance => "no projector runs it",
            Self::Waiting => "no instance follows it",
            Self::ApplyingHistory => "applying the history",
            Self::Following => "following",
        }
    }
}

fn write_report(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { state, causes, facts } = report;
    writeln!(text, "state     {}", state.word())?;
    for Reason { projection, cause } in causes {
        let projection = projection.as_ref().map_or_else(String::new, |name| format!("{name}: "));
        writeln!(text, "- {projection}{}", cause.line())?;
    }
    let Facts { publishing, projections, .. } = facts;
    if let Some(published) = publishing {
        let (relays, pending) = (published.relays.len(), published.pending);
        let pending = counted(pending, "event", "events");
        let relays = counted(relays, "session", "sessions");
        writeln!(text, "publishing  {pending} pending; {relays} of relays")?;
    }
    projections.iter().try_for_each(|found| write_projection(text, found))
}

fn write_projection(text: &mut String, found: &Found) -> std::fmt::Result {
    let Found { projection, state, parked, conflicts, healed, .. } = found;
    writeln!(text, "{projection}: {}", state.text())?;
    if matches!(state, Condition::Unknown | Condition::NotMigrated) {
        return Ok(());
    }
    if let Some(reason) = &found.reason {
        writeln!(text, "  reason      {reason}")?;
    }
    if let Some(files) = &found.files {
        writeln!(text, "  files       {files}")?;
    }
    match &found.lag {
        None => writeln!(text, "  lag         unknown")?,
        // The positions that were not compared have the newest events.
        Some(Lag { events: 0, is_minimum: true, .. }) => {
            writeln!(text, "  lag         none among the positions that were compared in time")?;
        }
        Some(lag) => {
            let more = if lag.is_minimum { "more than " } else { "" };
            let events = counted(lag.events, "event", "events");
            writeln!(text, "  lag         {more}{events}, {:.1} s", lag.seconds)?;
        }
    }
    for queue in &found.queues {
        let ready = queue.ready.map_or_else(|| "missing".to_owned(), |it| format!("{it} ready"));
        writeln!(text, "  queue       {}: {ready}, {} unsettled", queue.name, queue.unsettled)?;
    }
    let parked = counted(parked, "stream", "streams");
    writeln!(text, "  parked      {parked}, {conflicts} in conflict")?;
    if let Some(letters) = found.dead_letters {
        writeln!(text, "  dead        {}", counted(letters, "message", "messages"))?;
    }
    writeln!(text, "  healed      {}", counted(healed, "event", "events"))?;
    if found.locks_hidden {
        let hidden = read_model::Error::LocksHidden;
        writeln!(text, "  locks       unknown: {hidden}")?;
    }
    for FoundInstance { instance, assigned } in &found.instances {
        let numbers = |numbers: &[u16]| {
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") }
        };
        let busy = match instance.partitions.as_slice() {
            [] => "idle".to_owned(),
            delivering => format!("{} deliver now", numbers(delivering)),
        };
        let (host, of) = (&instance.host, instance.of);
        writeln!(text, "  {host}  serves partitions {} of {of}; {busy}", numbers(assigned))?;
    }
    match &found.rebuild {
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
