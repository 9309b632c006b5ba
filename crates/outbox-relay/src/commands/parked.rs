//! `outbox-relay parked`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::{Args, Subcommand};
use daemon::Failure;
use daemon::output::{Format, actor, counted, say};
use event_store::{Decision, Error, OutboxId, Reason, Session, Waiting, WaitingStream};
use serde::Serialize;

use super::{STATEMENT_LIMIT, failure, open};
use crate::Settings;

#[derive(Subcommand, Debug)]
pub(crate) enum Parked {
    /// List the parked streams, each with the event that it waits for.
    ///
    /// The number in the first column identifies the event for show, retry and skip. Lists up to
    /// 1,000 streams, those that have waited longest first.
    #[command(
        after_help = "Example:\n  outbox-relay parked list --all\n  outbox-relay parked list --reason \
                      unroutable --category mail"
    )]
    List {
        /// Also list held streams, which the relay retries without a decision.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        filter: Filter,
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
    ///
    /// With --reason, --key, --category or --error, the events of all streams that match are retried:
    /// of parked ones, and of held ones, which the relay would retry later by itself.
    #[command(
        after_help = "Example:\n  outbox-relay parked retry 4711 4712\n  outbox-relay parked retry \
                      --reason unroutable --key mail.Sent --dry-run"
    )]
    Retry {
        /// The numbers of the events in `outbox-relay parked list`.
        #[arg(required_unless_present_any = ["all", "filter"], conflicts_with = "filter")]
        ids: Vec<i64>,
        /// Retry the events of all parked streams.
        #[arg(long, conflicts_with_all = ["ids", "filter"])]
        all: bool,
        #[command(flatten)]
        filter: Filter,
        /// Only count the streams.
        #[arg(long, conflicts_with = "ids")]
        dry_run: bool,
        #[command(flatten)]
        format: Format,
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
        #[command(flatten)]
        format: Format,
    },
}

/// Which waiting streams are meant, by the event that they wait for. A stream must match all options.
#[derive(Args, Debug)]
#[group(id = "filter", multiple = true)]
pub(crate) struct Filter {
    /// Streams that wait for this reason: unroutable, nacked, `too_large`, refused or malformed.
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// Streams whose event has this routing key.
    #[arg(long)]
    key: Option<String>,
    /// Streams of this category, the first word of the routing key.
    #[arg(long)]
    category: Option<String>,
    /// Streams whose error contains this text.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.reason.is_none()
            && self.key.is_none()
            && self.category.is_none()
            && self.error.is_none()
    }

    /// What a filter means: without one, the parked streams.
    fn waiting(self) -> Waiting {
        let parked = self.is_empty();
        let Self { reason, key: routing_key, category, error } = self;
        Waiting { id: None, parked, reason, routing_key, category, error }
    }
}

/// A delayed event cannot be retried: it waits for its time.
fn reason(name: &str) -> Result<Reason, String> {
    let retried = Reason::ALL.into_iter().filter(|reason| *reason != Reason::Delayed);
    let names: Vec<&str> = retried.clone().map(Reason::as_str).collect();
    let found = retried.into_iter().find(|reason| reason.as_str() == name);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

/// How many streams were retried.
#[derive(Serialize)]
struct Retried {
    /// The streams that matched.
    streams: u64,
    dry_run: bool,
}

#[derive(Serialize)]
struct Skipped {
    id: i64,
    reason: String,
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
            Self::List { all, filter, format } => {
                let mut which = filter.waiting();
                which.parked &= !all;
                let streams = session.waiting(&which).await.map_err(failure)?;
                format.print(&streams, |streams| table(streams, which.parked))?;
            }
            Self::Show { id, payload, format } => {
                let shown = show(&mut session, id, payload).await.map_err(failure)?;
                format.print(&shown, details)?;
            }
            Self::Retry { ids, all: _, filter, dry_run, format } => {
                let (streams, result) = if ids.is_empty() {
                    let which = filter.waiting();
                    let retried = retry_matching(&mut session, &which, dry_run, format).await;
                    (retried.map_err(failure)?, Ok(()))
                } else {
                    retry(&mut session, &ids).await
                };
                let retried = Retried { streams, dry_run };
                format.print(&retried, |retried| {
                    let streams = retried.streams;
                    if dry_run {
                        counted(streams, "stream would be retried", "streams would be retried")
                    } else {
                        counted(streams, "stream is retried now", "streams are retried now")
                    }
                })?;
                result.map_err(failure)?;
            }
            Self::Skip { id, reason, format } => {
                let decision = Decision { actor: &actor(), reason: Some(&reason) };
                session.skip(OutboxId::from(id), decision).await.map_err(failure)?;
                format.print(&Skipped { id, reason }, |skipped| {
                    format!("event {} is skipped; its stream continues", skipped.id)
                })?;
            }
        }
        session.close().await;
        Ok(())
    }
}

/// Retries single events. A failure for one does not prevent the retry of the others.
async fn retry(session: &mut Session, ids: &[i64]) -> (u64, Result<(), Error>) {
    let (mut retried, mut result) = (0, Ok(()));
    for id in ids {
        let decision = Decision { actor: &actor(), reason: None };
        let one = session.retry(OutboxId::from(*id), decision).await;
        retried += u64::from(one.is_ok());
        result = result.and(one);
    }
    (retried, result)
}

async fn retry_matching(
    session: &mut Session,
    which: &Waiting,
    dry_run: bool,
    format: Format,
) -> Result<u64, Error> {
    let lanes = session.count_waiting(which).await?;
    let matching: u64 = lanes.iter().map(|(_, streams)| streams.unsigned_abs()).sum();
    if dry_run {
        return Ok(matching);
    }
    if !format.json {
        say(&counted(matching, "stream matches", "streams match"));
    }
    let mut retried = 0;
    for (lane, _) in lanes {
        let decision = Decision { actor: &actor(), reason: None };
        retried += session.retry_lane(lane, which, decision).await?;
    }
    Ok(retried)
}

async fn show(session: &mut Session, id: i64, payload: bool) -> Result<Shown, Error> {
    let found = session.waiting(&Waiting::of(OutboxId::from(id))).await?.pop();
    let stream = found.ok_or(Error::NotWaiting { id })?;
    let payload =
        if payload { Some(session.waiting_payload(OutboxId::from(id)).await?) } else { None };
    Ok(Shown { stream, payload })
}

fn table(streams: &[WaitingStream], parked: bool) -> String {
    if streams.is_empty() {
        let state = if parked { "parked" } else { "waiting" };
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
         attempts  {}, the stream waits since {}\nwaiting   {}, this one included\n\
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
        counted(stream.events, "event", "events"),
    )
}
