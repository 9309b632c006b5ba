//! Claiming lanes of the outbox.
//!
//! A lane is published by one worker at a time: the lock of its row in `outbox_lanes` lasts until
//! the claim's transaction ends, or its connection. Locking single rows instead would let two
//! workers publish one stream, out of order.

use std::time::Duration;

use domain_events::Event;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Postgres, Row, Transaction, query, query_as};

use crate::row::EventRow;
use crate::session::within;
use crate::{Error, Session};

/// The primary key of an outbox row; increasing within a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxId(pub(crate) i64);

/// One of the 64 parts of the outbox; a stream is always in the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub(crate) i16);

impl From<i64> for OutboxId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl From<i16> for Lane {
    fn from(lane: i16) -> Self {
        Self(lane)
    }
}

/// How much one claim takes.
#[derive(Debug, Clone, Copy)]
pub struct ClaimLimits {
    /// Lanes at most.
    pub lanes: u16,
    /// Events at most, shared evenly by the lanes.
    pub events: u32,
    /// Where in the circle of lanes to start looking, 0 to 63; random, so that no lane starves.
    pub start: u16,
}

/// An event to publish.
#[derive(Debug)]
pub struct Entry {
    /// The row.
    pub id: OutboxId,
    /// Its lane.
    pub lane: Lane,
    /// Identifies the stream; the event id where there is none.
    pub stream_key: String,
    /// Where the message goes.
    pub routing_key: String,
    /// How often its stream has failed already; absent for an event that does not wait.
    pub attempts: Option<u32>,
    /// The event.
    pub event: Event,
}

/// Locked lanes and their first events, until it is settled, released or dropped.
///
/// Dropping it leaves the rollback to the server; prefer [`Claim::release`].
pub struct Claim<'s> {
    pub(crate) transaction: Transaction<'s, Postgres>,
    pub(crate) client_limit: Duration,
    /// Events to publish, each stream in order.
    pub entries: Vec<Entry>,
    /// Events whose stream waits: not to be published now.
    pub(crate) waiting: Vec<OutboxId>,
}

impl Session {
    /// Claims lanes that nobody else has claimed and reads their first events.
    ///
    /// `None` when there is nothing to do.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn claim(&mut self, limits: ClaimLimits) -> Result<Option<Claim<'_>>, Error> {
        let client_limit = self.client_limit();
        let mut transaction = self.begin_claim().await?;
        let lock = query_as(
            "SELECT l.lane, EXISTS (SELECT 1 FROM outbox_holds h
                                    WHERE h.lane = l.lane AND h.until <= now()) AS due
             FROM outbox_lanes l
             WHERE EXISTS (SELECT 1 FROM outbox o
                           WHERE o.lane = l.lane AND o.processed_at IS NULL AND NOT o.held)
                OR EXISTS (SELECT 1 FROM outbox_holds h
                           WHERE h.lane = l.lane AND h.until <= now())
             ORDER BY (l.lane - $1) & 63
             LIMIT $2
             FOR UPDATE OF l SKIP LOCKED",
        )
        .bind(i32::from(limits.start))
        .bind(i64::from(limits.lanes));
        let locked: Vec<(i16, bool)> =
            within(client_limit, "claiming lanes", lock.fetch_all(&mut *transaction)).await?;
        if locked.is_empty() {
            within(client_limit, "releasing a claim", transaction.rollback()).await?;
            return Ok(None);
        }
        // From here on new statements: they see what was committed before the lanes were locked.
        let lanes: Vec<i16> = locked.iter().map(|(lane, _)| *lane).collect();
        let share = i64::from(limits.events).div_euclid(lanes.len().try_into().unwrap_or(1)).max(1);
        let mut claim =
            Claim { transaction, client_limit, entries: Vec::new(), waiting: Vec::new() };
        let due: Vec<i16> = locked.iter().filter(|(_, due)| *due).map(|(lane, _)| *lane).collect();
        if !due.is_empty() {
            claim.read_due(&due, limits.events).await?;
        }
        claim.read_pending(&lanes, share).await?;
        Ok(Some(claim))
    }
}

impl Claim<'_> {
    async fn read_pending(&mut self, lanes: &[i16], share: i64) -> Result<(), Error> {
        let query = query_as(
            "SELECT o.id, o.lane, coalesce(o.stream_id, o.event_id::text) AS stream_key,
                    o.routing_key, NULL::integer AS attempts, h.stream_key IS NOT NULL AS waits,
                    o.event_id, o.event_type, o.schema_version, o.stream_id, o.stream_version,
                    o.position, o.payload::text AS data, o.metadata::text AS metadata,
                    o.occurred_at, o.created_at AS recorded_at
             FROM unnest($1::smallint[]) AS claimed (lane)
             CROSS JOIN LATERAL (
                 SELECT * FROM outbox
                 WHERE outbox.lane = claimed.lane AND processed_at IS NULL AND NOT held
                 ORDER BY outbox.lane, outbox.id
                 LIMIT $2
             ) AS o
             LEFT JOIN outbox_holds h ON h.stream_key = coalesce(o.stream_id, o.event_id::text)",
        )
        .bind(lanes)
        .bind(share);
        let rows: Vec<EntryRow> = within(
            self.client_limit,
            "reading pending events",
            query.fetch_all(&mut *self.transaction),
        )
        .await?;
        for row in rows {
            if row.waits {
                self.waiting.push(OutboxId(row.id));
            } else {
                self.entries.push(row.into_entry()?);
            }
        }
        // A nested loop returns them so, but nothing promises it.
        self.entries.sort_unstable_by_key(|entry| entry.id);
        Ok(())
    }

    /// The first event of each stream whose time to try again has come; once that was published,
    /// the events that piled up behind it.
    async fn read_due(&mut self, lanes: &[i16], events: u32) -> Result<(), Error> {
        let clear = query(
            "DELETE FROM outbox_holds h
             WHERE h.lane = ANY ($1) AND h.until <= now()
               AND NOT EXISTS (SELECT 1 FROM outbox o
                               WHERE coalesce(o.stream_id, o.event_id::text) = h.stream_key
                                 AND o.processed_at IS NULL AND o.held)",
        )
        .bind(lanes)
        .execute(&mut *self.transaction);
        within(self.client_limit, "ending holds that hold nothing", clear).await?;
        let query = query_as(
            "SELECT o.id, o.lane, h.stream_key, o.routing_key, h.attempts, false AS waits,
                    o.event_id, o.event_type, o.schema_version, o.stream_id, o.stream_version,
                    o.position, o.payload::text AS data, o.metadata::text AS metadata,
                    o.occurred_at, o.created_at AS recorded_at
             FROM unnest($1::smallint[]) AS claimed (lane)
             CROSS JOIN LATERAL (
                 SELECT * FROM outbox_holds
                 WHERE outbox_holds.lane = claimed.lane AND until <= now()
                 ORDER BY outbox_holds.lane, until
                 LIMIT $2
             ) AS h
             CROSS JOIN LATERAL (
                 SELECT * FROM outbox
                 WHERE coalesce(stream_id, event_id::text) = h.stream_key
                   AND processed_at IS NULL AND held
                 ORDER BY coalesce(stream_id, event_id::text), id
                 LIMIT CASE WHEN h.attempts = 0 THEN $2 ELSE 1 END
             ) AS o
             LIMIT $2",
        )
        .bind(lanes)
        .bind(i64::from(events));
        let rows: Vec<EntryRow> = within(
            self.client_limit,
            "reading events that are due again",
            query.fetch_all(&mut *self.transaction),
        )
        .await?;
        for row in rows {
            self.entries.push(row.into_entry()?);
        }
        Ok(())
    }

    /// Gives the lanes back with nothing marked.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be told; the lanes are free once the session is dropped.
    pub async fn release(self) -> Result<(), Error> {
        within(self.client_limit, "releasing a claim", self.transaction.rollback()).await
    }
}

struct EntryRow {
    id: i64,
    lane: i16,
    stream_key: String,
    routing_key: String,
    attempts: Option<i32>,
    waits: bool,
    event: EventRow,
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
            event: EventRow::from_row(row)?,
        })
    }
}

impl EntryRow {
    fn into_entry(self) -> Result<Entry, Error> {
        Ok(Entry {
            id: OutboxId(self.id),
            lane: Lane(self.lane),
            stream_key: self.stream_key,
            routing_key: self.routing_key,
            attempts: self.attempts.map(i32::unsigned_abs),
            event: self.event.into_event("outbox")?,
        })
    }
}
