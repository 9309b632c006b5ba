//! `outbox-relay parked`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::Subcommand;
use daemon::Failure;
use daemon::output::{Format, actor, say};
use event_store::{Decision, Error, OutboxId, Session, Waiting, WaitingStream};
use serde::Serialize;

use super::{STATEMENT_LIMIT, failure, open};
use crate::Settings;

#[derive(Subcommand, Debug)]
pub(crate) enum Parked {
    /// List the parked streams, each with the event that it waits for.
    ///
    /// The number in the first column identifies the event for show, retry and skip. Lists up to
    /// 1,000 streams, those that have waited longest first.
    #[command(after_help = "Example:\n  outbox-relay parked list --all")]
    List {
        /// Also list held streams, which the relay retries without a decision.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Show the event that a stream waits for, and why it could not be published.
    #[command(after_help = "Example:\n  outbox-relay parked show 4711 --payload")]
    Show {
        /// The number of the event in `outbox-relay parked list`.
        id: i64,
        /// Print the payload too. It may be confidential.
        #[arg(long)]
        payload: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Retry events now.
    ///
    /// The stream of a retried event continues if the event can be published. If it fails again, the
    /// relay tries it up to `relay.max_attempts` times, and then parks the stream again. The decision
    /// is recorded in `outbox_audit`.
    #[command(after_help = "Example:\n  outbox-relay parked retry 4711 4712")]
    Retry {
        /// The numbers of the events in `outbox-relay parked list`.
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// Retry the events of all parked streams.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Skip an event: the relay never publishes it, and its stream continues with the next event.
    ///
    /// An event of the event store still reaches the read models, because the projector reads
    /// missing events from the event store. Other consumers do not receive it.
    #[command(
        after_help = "Example:\n  outbox-relay parked skip 4711 --reason 'larger than the broker allows'"
    )]
    Skip {
        /// The number of the event in `outbox-relay parked list`.
        id: i64,
        /// Why; recorded in `outbox_audit` with your name and the time.
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

impl Parked {
    pub(crate) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let mut session = open(settings, STATEMENT_LIMIT).await?;
        match self {
            Self::List { all, format } => {
                let which = if all { Waiting::All } else { Waiting::Parked };
                let streams = session.waiting(which).await.map_err(failure)?;
                format.print(&streams, |streams| table(streams, which))?;
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
                    // A failure for one event does not prevent the retry of the others.
                    result = result.and(retry(&mut session, id).await);
                }
                result.map_err(failure)?;
            }
            Self::Skip { id, reason } => {
                let decision = Decision { actor: &actor(), reason: Some(&reason) };
                session.skip(OutboxId::from(id), decision).await.map_err(failure)?;
                say(&format!("event {id} is skipped; its stream continues"));
            }
        }
        session.close().await;
        Ok(())
    }
}

async fn retry(session: &mut Session, id: i64) -> Result<(), Error> {
    session.retry(OutboxId::from(id), Decision { actor: &actor(), reason: None }).await?;
    say(&format!("event {id} will be retried now"));
    Ok(())
}

async fn retry_all(session: &mut Session) -> Result<(), Error> {
    loop {
        let streams = session.waiting(Waiting::Parked).await?;
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

fn table(streams: &[WaitingStream], which: Waiting) -> String {
    if streams.is_empty() {
        let state = if which == Waiting::Parked { "parked" } else { "waiting" };
        return format!("no stream is {state}");
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
    let next = match stream.until {
        Some(until) => format!("is held; next retry at {}", time(until)),
        None => format!(
            "is parked: run `outbox-relay parked retry {id}` or \
             `outbox-relay parked skip {id} --reason ...`",
            id = stream.id
        ),
    };
    let payload =
        payload.as_ref().map_or_else(String::new, |payload| format!("\npayload   {payload}"));
    format!(
        "event     {} ({}), {} bytes\nstream    {}{version}\nkey       {}\nerror     {}: {}\n\
         attempts  {}, the stream waits since {}\nwaiting   {} events, this one included\n\
         the stream {next}{payload}",
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
