//! `outbox-relay blocked`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::Subcommand;
use daemon::Failure;
use event_store::{Decision, Error, OutboxId, Session, Waiting, WaitingStream};
use serde::Serialize;

use super::{Format, PATIENCE, actor, failure, open, say};
use crate::Settings;

#[derive(Subcommand, Debug)]
pub(crate) enum Blocked {
    /// List the streams that wait for a decision.
    List {
        /// Also those that are tried again by themselves.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Show one event that a stream waits for.
    Show {
        /// The number that `list` shows.
        id: i64,
        /// Print the payload too.
        #[arg(long)]
        payload: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Try events again now.
    Retry {
        /// The numbers that `list` shows.
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// All that are blocked.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Give an event up: it is never published, and its stream goes on.
    ///
    /// Read models still get an event of the event store: the projector finds it there.
    Skip {
        /// The number that `list` shows.
        id: i64,
        /// Why; it is recorded in `outbox_audit`, with your name and the time.
        #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
    },
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    stream: WaitingStream,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl Blocked {
    pub(crate) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let mut session = open(settings, PATIENCE).await?;
        match self {
            Self::List { all, format } => {
                let which = if all { Waiting::All } else { Waiting::Blocked };
                let streams = session.waiting(which).await.map_err(failure)?;
                format.print(&streams, |streams| table(streams))?;
            }
            Self::Show { id, payload, format } => {
                let shown = show(&mut session, id, payload).await.map_err(failure)?;
                format.print(&shown, details)?;
            }
            Self::Retry { ids, all } => {
                if all {
                    retry_all(&mut session).await.map_err(failure)?;
                }
                let mut result = Ok(());
                for id in ids {
                    // One that goes on already does not keep the others from it.
                    result = result.and(retry(&mut session, id).await);
                }
                result.map_err(failure)?;
            }
            Self::Skip { id, reason } => {
                let decision = Decision { actor: &actor(), reason: Some(&reason) };
                session.skip(OutboxId::from(id), decision).await.map_err(failure)?;
                say(&format!("event {id} is skipped; its stream goes on"));
            }
        }
        session.close().await;
        Ok(())
    }
}

async fn retry(session: &mut Session, id: i64) -> Result<(), Error> {
    session.retry(OutboxId::from(id), Decision { actor: &actor(), reason: None }).await?;
    say(&format!("event {id} is tried again"));
    Ok(())
}

async fn retry_all(session: &mut Session) -> Result<(), Error> {
    loop {
        let streams = session.waiting(Waiting::Blocked).await?;
        for stream in &streams {
            match retry(session, stream.id).await {
                Ok(()) | Err(Error::NotWaiting { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        if streams.len() < Waiting::LIMIT {
            return Ok(());
        }
    }
}

async fn show(session: &mut Session, id: i64, payload: bool) -> Result<Shown, Error> {
    let found = session.waiting(Waiting::For(OutboxId::from(id))).await?.pop();
    let stream = found.ok_or(Error::NotWaiting { id })?;
    let payload =
        if payload { Some(session.waiting_payload(OutboxId::from(id)).await?) } else { None };
    Ok(Shown { stream, payload })
}

fn table(streams: &[WaitingStream]) -> String {
    if streams.is_empty() {
        return "no stream waits".to_owned();
    }
    let more = streams.len() >= Waiting::LIMIT;
    let mut text =
        format!("{:>10}  {:>6}  {:>8}  {:<20}  STREAM\n", "ID", "EVENTS", "ATTEMPTS", "SINCE");
    for stream in streams {
        let since = stream.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        let WaitingStream { id, events, attempts, stream_key, last_error, .. } = stream;
        writeln!(text, "{id:>10}  {events:>6}  {attempts:>8}  {since:<20}  {stream_key}")
            .and_then(|()| writeln!(text, "{:>12}{last_error}", ""))
            .expect("writing to a String cannot fail");
    }
    if more {
        text.push_str("there may be more\n");
    }
    text
}

fn details(shown: &Shown) -> String {
    let Shown { stream, payload } = shown;
    let time =
        |time: chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let version =
        stream.stream_version.map_or_else(String::new, |version| format!(", version {version}"));
    let until = match stream.until {
        Some(until) => format!("is tried again at {}", time(until)),
        None => format!(
            "is blocked: `outbox-relay blocked retry {id}` or `outbox-relay blocked skip {id} --reason ...`",
            id = stream.id
        ),
    };
    let payload =
        payload.as_ref().map_or_else(String::new, |payload| format!("\npayload   {payload}"));
    format!(
        "event     {} ({}), {} bytes\nstream    {}{version}\nkey       {}\nproblem   {}: {}\n\
         tried     {} times, waits since {}\nbehind    {} events wait, this one included\n\
         the stream {until}{payload}",
        stream.event_id,
        stream.event_type,
        stream.bytes,
        stream.stream_key,
        stream.routing_key,
        stream.reason,
        stream.last_error,
        stream.attempts,
        time(stream.since),
        stream.events,
    )
}
