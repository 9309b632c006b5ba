//! Claims lanes of the outbox.
//!
//! The outbox has 64 lanes, and all events of a stream are in the same one. A worker locks the row of a
//! lane in `outbox_lanes` until its transaction or its connection ends, so only one worker at a time
//! publishes a lane. If workers locked single events instead, two could publish events of one stream
//! at the same time, out of order.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use domain_events::Event;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Postgres, Row, Transaction, query_as};

use crate::row::EventRow;
use crate::session::within;
use crate::{Error, Session};

/// The primary key of an outbox row. It increases within a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxId(pub(crate) i64);

/// One of the 64 parts of the outbox. A stream always belongs to the same lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub(crate) i16);

impl OutboxId {
    /// The number in the table.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for OutboxId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl Lane {
    /// The number of lanes.
    pub const COUNT: u16 = 64;

    /// All lanes.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT.cast_signed()).map(Self)
    }
}

impl From<i16> for Lane {
    fn from(lane: i16) -> Self {
        Self(lane)
    }
}

/// Limits of one claim.
#[derive(Debug, Clone, Copy)]
pub struct ClaimLimits {
    /// At most this many lanes.
    pub lanes: u16,
    /// At most this many events, divided evenly among the lanes.
    pub events: u32,
    /// At most this many bytes of payload, unless a single event has more.
    pub bytes: u64,
    /// The payload of an event with more bytes is not read.
    pub event_bytes: u64,
}

/// An event to publish.
#[derive(Debug)]
pub struct Entry {
    /// Its row in the outbox.
    pub id: OutboxId,
    /// Its lane.
    pub lane: Lane,
    /// Identifies the stream. An event without a stream has its event id here.
    pub stream_key: String,
    /// The routing key of the message.
    pub routing_key: String,
    /// How often the event that its stream waits for has failed; `None` if the stream does not wait.
    pub attempts: Option<u32>,
    /// Length of the payload in bytes.
    pub bytes: u64,
    /// The event, or why the row is none. Its payload is empty if it exceeds [`ClaimLimits::event_bytes`].
    pub event: Result<Event, String>,
}

/// Locked lanes and their first events. The lanes are unlocked when it is settled, released or
/// dropped.
///
/// After a drop, the server notices only at the end of the connection; prefer [`Claim::release`].
pub struct Claim<'s> {
    pub(crate) transaction: Transaction<'s, Postgres>,
    pub(crate) client_limit: Duration,
    /// Whether the last claim of one of the lanes ended without being settled or released, because its
    /// relay died or lost its connection. Messages it sent may still be on their way to the broker.
    pub taken_over: bool,
    /// Events to publish, each stream in order.
    pub entries: Vec<Entry>,
    /// Lanes with pending events of streams that wait. These events are not published now.
    pub(crate) waiting: BTreeSet<Lane>,
    /// Streams that must wait for a delayed event from now on.
    pub(crate) delayed: Vec<Delayed>,
}

/// A stream that waits for a delayed event.
pub(crate) struct Delayed {
    pub(crate) stream_key: String,
    pub(crate) lane: Lane,
    pub(crate) outbox_id: OutboxId,
    pub(crate) until: DateTime<Utc>,
}

impl Session {
    /// Claims lanes with events to publish that no other worker has claimed, and reads their first
    /// events. `None` when there are no such lanes.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn claim(&mut self, limits: ClaimLimits) -> Result<Option<Claim<'_>>, Error> {
        let client_limit = self.client_limit();
        let mut transaction = self.begin_claim().await?;
        // The lane whose event has waited longest comes first, whether that event is pending or due for
        // a retry. So no lane starves.
        let lock = query_as(
            "SELECT l.lane, due.since IS NOT NULL, was_rolled_back(l.xmax)
             FROM outbox_lanes l
             LEFT JOIN LATERAL (
                 SELECT o.created_at AS since FROM outbox o
                 WHERE o.lane = l.lane AND o.id >= (SELECT last_value FROM outbox_floor)
                   AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
                 ORDER BY o.lane, o.id
                 LIMIT 1
             ) AS pending ON true
             CROSS JOIN LATERAL (
                 SELECT least((SELECT min(h.until) FROM outbox_holds h
                               WHERE h.lane = l.lane AND h.until <= now()),
                              (SELECT min(o.available_at) FROM outbox o
                               WHERE o.lane = l.lane AND o.processed_at IS NULL
                                 AND o.available_at <= now())) AS since
             ) AS due
             WHERE pending.since IS NOT NULL OR due.since IS NOT NULL
             ORDER BY least(pending.since, due.since)
             LIMIT $1
             FOR UPDATE OF l SKIP LOCKED",
        )
        .bind(i64::from(limits.lanes));
        let locked: Vec<(i16, bool, bool)> =
            within(client_limit, "claiming lanes", lock.fetch_all(&mut *transaction)).await?;
        if locked.is_empty() {
            within(client_limit, "releasing a claim", transaction.rollback()).await?;
            return Ok(None);
        }
        // The rows are read in further statements, because only these see everything that was committed
        // before the lanes were locked.
        let lanes: Vec<i16> = locked.iter().map(|(lane, ..)| *lane).collect();
        let share = i64::from(limits.events).div_euclid(lanes.len().try_into().unwrap_or(1)).max(1);
        let (entries, waiting, delayed) = (Vec::new(), BTreeSet::new(), Vec::new());
        let taken_over = locked.iter().any(|(.., rolled_back)| *rolled_back);
        let mut claim = Claim { transaction, client_limit, taken_over, entries, waiting, delayed };
        let due: Vec<i16> =
            locked.iter().filter(|(_, due, _)| *due).map(|(lane, ..)| *lane).collect();
        if !due.is_empty() {
            claim.release_delayed(&due, share).await?;
            claim.tidy_holds(&due, share).await?;
            claim.read_due(&due, limits).await?;
        }
        claim.read_pending(&lanes, share, limits).await?;
        Ok(Some(claim))
    }
}

impl Claim<'_> {
    /// Whether pending events of waiting streams were found. Other streams may have events behind
    /// them.
    pub fn met_waiting_streams(&self) -> bool {
        !self.waiting.is_empty()
    }

    async fn read_pending(
        &mut self,
        lanes: &[i16],
        share: i64,
        limits: ClaimLimits,
    ) -> Result<(), Error> {
        let query = query_as(
            "SELECT *, CASE WHEN bytes <= $4 THEN payload ELSE '{}' END AS data
             FROM (
                 SELECT *, octet_length(payload)::bigint AS bytes,
                        sum(octet_length(payload)) OVER (ORDER BY id) AS total
                 FROM (
                     SELECT o.id, o.lane, coalesce(o.stream_id, o.event_id::text) AS stream_key,
                            o.routing_key, NULL::integer AS attempts,
                            h.stream_key IS NOT NULL AS waits,
                            delayed.available_at AS delayed_until,
                            o.event_id, o.event_type, o.schema_version, o.stream_id,
                            o.stream_version, o.position, o.metadata::text AS metadata,
                            o.occurred_at, coalesce(o.recorded_at, o.created_at) AS recorded_at,
                            CASE WHEN h.stream_key IS NULL AND delayed.available_at IS NULL
                                 THEN o.payload::text ELSE '' END AS payload
                     FROM unnest($1::smallint[]) AS claimed (lane)
                     CROSS JOIN LATERAL (
                         SELECT * FROM outbox
                         WHERE outbox.lane = claimed.lane
                           AND outbox.id >= (SELECT last_value FROM outbox_floor)
                           AND processed_at IS NULL AND NOT held AND available_at IS NULL
                         ORDER BY outbox.lane, outbox.id
                         LIMIT $2
                     ) AS o
                     LEFT JOIN outbox_holds h
                         ON h.stream_key = coalesce(o.stream_id, o.event_id::text)
                     LEFT JOIN LATERAL (
                         SELECT d.available_at FROM outbox d
                         -- Evaluated once, not once for each event.
                         WHERE (SELECT EXISTS (
                                    SELECT FROM outbox WHERE processed_at IS NULL
                                    AND available_at IS NOT NULL AND stream_id IS NOT NULL))
                           AND d.stream_id = o.stream_id AND d.id < o.id
                           AND d.processed_at IS NULL AND d.available_at IS NOT NULL
                         ORDER BY d.stream_id, d.id
                         LIMIT 1
                     ) AS delayed ON true
                     -- Keeps PostgreSQL from converting each payload to text more than once.
                     OFFSET 0
                 ) AS page
             ) AS sized
             WHERE total - bytes < $3
             ORDER BY id",
        )
        .bind(lanes)
        .bind(share)
        .bind(number(limits.bytes))
        .bind(number(limits.event_bytes));
        let rows: Vec<EntryRow> = within(
            self.client_limit,
            "reading pending events",
            query.fetch_all(&mut *self.transaction),
        )
        .await?;
        for row in rows {
            let lane = Lane(row.lane);
            if row.waits {
                self.waiting.insert(lane);
            } else if let Some(until) = row.delayed_until {
                self.waiting.insert(lane);
                let (stream_key, outbox_id) = (row.stream_key, OutboxId(row.id));
                self.delayed.push(Delayed { stream_key, lane, outbox_id, until });
            } else {
                self.entries.push(row.into_entry());
            }
        }
        // Events that were due were read first.
        self.entries.sort_unstable_by_key(|entry| entry.id);
        Ok(())
    }

    /// Unlocks the lanes without marking an event.
    ///
    /// # Errors
    ///
    /// When the statement fails. The lanes are unlocked when the session is dropped.
    pub async fn release(self) -> Result<(), Error> {
        // After a rollback, the next claim would assume that this relay had died.
        within(self.client_limit, "releasing a claim", self.transaction.commit()).await
    }
}

/// A row of the queries for pending and due events.
pub(crate) struct EntryRow {
    id: i64,
    lane: i16,
    stream_key: String,
    routing_key: String,
    attempts: Option<i32>,
    waits: bool,
    delayed_until: Option<DateTime<Utc>>,
    bytes: i64,
    /// One row that cannot be read must not stop those of other streams.
    event: Result<EventRow, String>,
}

impl FromRow<'_, PgRow> for EntryRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            lane: row.try_get("lane")?,
            stream_key: row.try_get("stream_key")?,
            routing_key: row.try_get("routing_key")?,
            attempts: row.try_get("attempts")?,
            waits: row.try_get("waits")?,
            delayed_until: row.try_get("delayed_until")?,
            bytes: row.try_get("bytes")?,
            event: EventRow::from_row(row).map_err(|error| error.to_string()),
        })
    }
}

impl EntryRow {
    pub(crate) fn into_entry(self) -> Entry {
        Entry {
            id: OutboxId(self.id),
            lane: Lane(self.lane),
            stream_key: self.stream_key,
            routing_key: self.routing_key,
            attempts: self.attempts.map(i32::unsigned_abs),
            bytes: self.bytes.unsigned_abs(),
            event: self.event.and_then(|row| row.convert().map_err(|error| error.to_string())),
        }
    }
}

/// A size as a PostgreSQL `bigint`.
pub(crate) fn number(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
