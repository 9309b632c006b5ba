//! `outbox-relay reconcile` and `outbox-relay republish`.

use std::fmt::Write;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use daemon::output::{Format, Progress, actor, counted, say};
use daemon::{Exit, Failure};
use event_store::{Compared, Fence, MissingEvent, Reconciled, Selection, Session};
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{STATEMENT_LIMIT, failure, open};
use crate::Settings;

/// How many missing events are listed.
const EXAMPLES: usize = 20;

/// Options that select events of the event store. An event must match all of them.
#[derive(Args, Debug)]
struct Events {
    /// Select events after this position, the global order of the event store.
    #[arg(long, value_name = "POSITION")]
    after: Option<i64>,
    /// Select events up to and including this position.
    #[arg(long, value_name = "POSITION")]
    until: Option<i64>,
    /// Select events recorded at or after this time, for example 2026-01-31T09:30:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Select events recorded before this time.
    #[arg(long, value_name = "TIME")]
    before: Option<DateTime<Utc>>,
    /// Select the event with this id; can be repeated.
    #[arg(long = "event-id", value_name = "UUID")]
    event_ids: Vec<Uuid>,
    /// Select events of this stream; can be repeated.
    #[arg(long = "stream", value_name = "STREAM")]
    streams: Vec<String>,
    /// Select events of this type; can be repeated.
    #[arg(long = "type", value_name = "TYPE")]
    event_types: Vec<String>,
}

impl Events {
    fn is_everything(&self) -> bool {
        self.after.is_none()
            && self.until.is_none()
            && self.since.is_none()
            && self.before.is_none()
            && self.event_ids.is_empty()
            && self.streams.is_empty()
            && self.event_types.is_empty()
    }

    /// The selection, limited to positions up to which no open transaction can still add an event.
    async fn select(self, session: &mut Session) -> Result<Selection, Failure> {
        let mut fence = session.take_fence().await.map_err(failure)?;
        let deadline = Instant::now() + Fence::PATIENCE;
        while !fence.is_decided() {
            if Instant::now() > deadline {
                let writers = session.fence_writers(&fence).await.map_err(failure)?;
                let error = anyhow!(
                    "transactions that append are still open, retry when they have ended: \
                     {writers:?}"
                );
                return Err(Failure::new(Exit::Unavailable, error));
            }
            sleep(Fence::POLL).await;
            session.refresh_fence(&mut fence).await.map_err(failure)?;
        }
        let head = fence.limit().get();
        let selection = Selection {
            after: self.after,
            until: Some(self.until.map_or(head, |until| until.min(head))),
            since: self.since,
            before: self.before,
            event_ids: self.event_ids,
            streams: self.streams,
            event_types: self.event_types,
        };
        session.narrow(selection).await.map_err(failure)
    }
}

/// Check that every event of the event store is or was in the outbox.
///
/// A trigger puts each appended event into the outbox. An event can be missing there if the trigger
/// was disabled or rows were deleted by hand. Reads the selected events, then the outbox from its newest
/// row on until each of them was found. Both are read in pages, so it can run beside everything else.
/// Exits with 65 if an event is missing, and lists the first 20; `outbox-relay republish` publishes
/// them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outbox-relay reconcile --since 2026-01-31T09:30:00Z")]
pub(crate) struct Reconcile {
    #[command(flatten)]
    events: Events,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    counted: Reconciled,
    /// The first missing events.
    examples: Vec<MissingEvent>,
}

impl Reconcile {
    pub(crate) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let mut session = open(settings, STATEMENT_LIMIT).await?;
        let selection = self.events.select(&mut session).await?;
        let mut progress = Progress::begin();
        let report = |compared| {
            progress.report(|| match compared {
                Compared::Events(count) => counted(count, "event read", "events read"),
                Compared::Wanted(count) => {
                    counted(count, "event", "events") + " still to be found in the outbox"
                }
            });
        };
        let compared = session.reconcile(&selection, settings.retention, EXAMPLES, report).await;
        let (found, examples) = compared.map_err(failure)?;
        session.close().await;
        self.format.print(&Report { counted: found, examples }, text)?;
        match found.missing {
            0 => Ok(()),
            missing => {
                let error = anyhow!(
                    "{} not in the outbox: publish with `outbox-relay republish --event-id ...`",
                    counted(missing, "event is", "events are")
                );
                Err(Failure::new(Exit::Data, error))
            }
        }
    }
}

fn text(report: &Report) -> String {
    let Reconciled { events, processed, pending, expired, missing } = report.counted;
    let mut text = format!(
        "events     {events}\nprocessed  {processed}\npending    {pending}\n\
         expired    {expired}, no longer in the outbox because they are older than relay.retention\n\
         missing    {missing}\n"
    );
    for event in &report.examples {
        let MissingEvent { position, event_id, stream_id, stream_version, event_type } = event;
        writeln!(
            text,
            "missing: position {position}, {event_id}, {event_type}, \
             version {stream_version} of {stream_id}"
        )
        .expect("writing to a String cannot fail");
    }
    text
}

/// Publish events of the event store again, for a new consumer or after a loss.
///
/// The events are put into the outbox again, behind the pending ones. Every bound queue receives
/// them, so consumers must recognise repeated events by their id. The projector does.
/// The command is recorded in `outbox_audit`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  outbox-relay republish --stream order-1234 --dry-run")]
pub(crate) struct Republish {
    #[command(flatten)]
    events: Events,
    /// Select every event of the event store.
    #[arg(long)]
    all: bool,
    /// Put at most this many events per second into the outbox.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Only count the selected events.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Republished {
    events: i64,
    dry_run: bool,
}

impl Republish {
    pub(crate) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        if self.events.is_everything() != self.all {
            let error =
                anyhow!("select events with --stream, --since and so on, or all with --all");
            return Err(Failure::new(Exit::Configuration, error));
        }
        let mut session = open(settings, STATEMENT_LIMIT).await?;
        let mut selection = self.events.select(&mut session).await?;
        let events = if self.dry_run {
            let mut progress = Progress::begin();
            let report =
                |count| progress.report(|| counted(count, "event counted", "events counted"));
            session.count_events(&selection, report).await.map_err(failure)?
        } else {
            let what = serde_json::to_string(&selection).unwrap_or_default();
            session.audit_republish(&actor(), &what).await.map_err(failure)?;
            republish(&mut session, &mut selection, self.rate).await?
        };
        session.close().await;
        self.format.print(&Republished { events, dry_run: self.dry_run }, |done| {
            if done.dry_run {
                counted(done.events, "event would be", "events would be") + " published again"
            } else {
                counted(done.events, "event is", "events are") + " in the outbox again"
            }
        })
    }
}

async fn republish(
    session: &mut Session,
    selection: &mut Selection,
    rate: u32,
) -> Result<i64, Failure> {
    let page = (rate / 10).clamp(1, 1_000);
    let mut total = 0;
    let mut next = Instant::now();
    while let Some((count, last)) = session.republish(selection, page).await.map_err(|error| {
        let put = counted(total, "event was", "events were");
        say(&format!("{put} put into the outbox before the failure"));
        failure(error)
    })? {
        total += count;
        selection.after = Some(last.get());
        // A page without selected events costs none of the rate.
        next = next.max(Instant::now()) + Duration::from_secs(count.unsigned_abs()) / rate;
        sleep_until(next).await;
    }
    Ok(total)
}
