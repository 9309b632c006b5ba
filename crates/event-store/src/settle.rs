//! Settles a claim: marks published events, and holds the streams of the others.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::query;

use crate::session::within;
use crate::{Claim, Error, Lane, OutboxId};

/// How many pending events of waiting streams one claim sets aside. The lanes stay locked meanwhile,
/// for about a quarter of a second.
const SET_ASIDE_AT_ONCE: usize = 1_000;

/// What to record about the events of a claim. Events that it does not contain stay pending.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Events confirmed by the broker, or discarded.
    pub processed: Vec<OutboxId>,
    /// Streams whose first unpublished event failed.
    pub holds: Vec<Hold>,
    /// The failed events and the later ones of their streams. They leave the index of pending events,
    /// so that the next claim does not read them.
    pub set_aside: Vec<OutboxId>,
    /// Streams that waited, and whose events of this claim were all published.
    pub recovered: Vec<String>,
    /// Whether published rows are deleted at once instead of being marked.
    pub delete: bool,
}

/// Why a stream waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No queue is bound for the routing key.
    Unroutable,
    /// The broker rejected the message temporarily, for example because a queue is full.
    Nacked,
    /// The event is too large to be sent.
    TooLarge,
    /// The broker closed the channel because of the message.
    Refused,
    /// An earlier event of the stream is delayed.
    Delayed,
    /// The row is not a valid event.
    Malformed,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::Unroutable,
        Self::Nacked,
        Self::TooLarge,
        Self::Refused,
        Self::Delayed,
        Self::Malformed,
    ];

    /// The name in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unroutable => "unroutable",
            Self::Nacked => "nacked",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::Delayed => "delayed",
            Self::Malformed => "malformed",
        }
    }
}

/// A stream that waits.
#[derive(Debug)]
pub struct Hold {
    /// The stream. An event without a stream has its event id here.
    pub stream_key: String,
    /// Its lane.
    pub lane: Lane,
    /// The event that could not be published.
    pub outbox_id: OutboxId,
    /// The kind of failure.
    pub reason: Reason,
    /// What happened, and what to do about it.
    pub error: String,
    /// When to retry, counted from now; `None` parks the stream until a person decides.
    pub retry_after: Option<Duration>,
}

impl Claim<'_> {
    /// Records a settlement, and unlocks the lanes.
    ///
    /// # Errors
    ///
    /// When a statement fails, or the claim was lost meanwhile. Then nothing is recorded, and the events
    /// will be published again.
    pub async fn settle(mut self, settlement: &Settlement) -> Result<(), Error> {
        if !settlement.processed.is_empty() {
            self.mark_processed(&settlement.processed, settlement.delete).await?;
        }
        if !settlement.holds.is_empty() {
            self.hold(&settlement.holds).await?;
        }
        if !settlement.recovered.is_empty() {
            self.recover(&settlement.recovered).await?;
        }
        if !self.delayed.is_empty() {
            self.wait_for_delayed().await?;
        }
        if !settlement.set_aside.is_empty() {
            self.set_aside(&settlement.set_aside).await?;
        }
        if !self.waiting.is_empty() {
            self.set_aside_waiting().await?;
        }
        within(self.client_limit, "committing a claim", self.transaction.commit()).await
    }

    async fn mark_processed(&mut self, ids: &[OutboxId], delete: bool) -> Result<(), Error> {
        let mark = if delete {
            query("DELETE FROM outbox WHERE id = ANY ($1) AND processed_at IS NULL")
        } else {
            query(
                "UPDATE outbox
                 SET processed_at = clock_timestamp(), held = false,
                     -- Otherwise PostgreSQL parses the generated column's definition for each row.
                     stream_id = stream_id
                 WHERE id = ANY ($1) AND processed_at IS NULL",
            )
        };
        let mark = mark.bind(numbers(ids)).execute(&mut *self.transaction);
        let marked = within(self.client_limit, "marking events processed", mark).await?;
        let (expected, marked) = (ids.len() as u64, marked.rows_affected());
        if marked == expected { Ok(()) } else { Err(Error::NotMarked { expected, marked }) }
    }

    /// Holds the streams whose next event must wait for a delayed one.
    async fn wait_for_delayed(&mut self) -> Result<(), Error> {
        let delayed = &self.delayed;
        let keys: Vec<&str> = delayed.iter().map(|stream| stream.stream_key.as_str()).collect();
        let lanes: Vec<i16> = delayed.iter().map(|stream| stream.lane.0).collect();
        let ids: Vec<i64> = delayed.iter().map(|stream| stream.outbox_id.0).collect();
        let until: Vec<DateTime<Utc>> = delayed.iter().map(|stream| stream.until).collect();
        let insert = query(
            "INSERT INTO outbox_holds
                 (stream_key, lane, outbox_id, attempts, reason, last_error, until)
             SELECT DISTINCT ON (d.stream_key) d.stream_key, d.lane, d.outbox_id, 0, 'delayed',
                    'a delayed event comes first', d.until
             FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::timestamptz[])
                  AS d (stream_key, lane, outbox_id, until)
             ORDER BY d.stream_key, d.outbox_id
             ON CONFLICT (stream_key) DO NOTHING",
        )
        .bind(keys)
        .bind(lanes)
        .bind(ids)
        .bind(until)
        .execute(&mut *self.transaction);
        within(self.client_limit, "waiting for delayed events", insert).await.map(drop)
    }

    async fn hold(&mut self, holds: &[Hold]) -> Result<(), Error> {
        let keys: Vec<&str> = holds.iter().map(|hold| hold.stream_key.as_str()).collect();
        let lanes: Vec<i16> = holds.iter().map(|hold| hold.lane.0).collect();
        let ids: Vec<i64> = holds.iter().map(|hold| hold.outbox_id.0).collect();
        let errors: Vec<&str> = holds.iter().map(|hold| hold.error.as_str()).collect();
        let reasons: Vec<&str> = holds.iter().map(|hold| hold.reason.as_str()).collect();
        let delays: Vec<Option<f64>> =
            holds.iter().map(|hold| hold.retry_after.map(|after| after.as_secs_f64())).collect();
        let upsert = query(
            "INSERT INTO outbox_holds AS h
                 (stream_key, lane, outbox_id, attempts, reason, last_error, blocked, until)
             SELECT f.stream_key, f.lane, f.outbox_id, 1, f.reason, f.error, f.delay IS NULL,
                    coalesce(clock_timestamp() + make_interval(secs => f.delay), 'infinity')
             FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::text[], $5::text[],
                         $6::float8[])
                  AS f (stream_key, lane, outbox_id, error, reason, delay)
             ON CONFLICT (stream_key) DO UPDATE SET
                 attempts = CASE WHEN h.outbox_id = excluded.outbox_id THEN h.attempts + 1 ELSE 1 END,
                 since = CASE WHEN h.outbox_id = excluded.outbox_id THEN h.since ELSE now() END,
                 outbox_id = excluded.outbox_id,
                 reason = excluded.reason,
                 last_error = excluded.last_error,
                 blocked = excluded.blocked,
                 until = excluded.until",
        )
        .bind(keys)
        .bind(lanes)
        .bind(ids)
        .bind(errors)
        .bind(reasons)
        .bind(delays)
        .execute(&mut *self.transaction);
        within(self.client_limit, "holding streams", upsert).await.map(drop)
    }

    /// Removes events of waiting streams from the index of pending events.
    async fn set_aside(&mut self, ids: &[OutboxId]) -> Result<(), Error> {
        let update = query(
            "UPDATE outbox o SET held = true
             FROM outbox_holds h
             WHERE o.id = ANY ($1) AND NOT o.held
               AND h.stream_key = coalesce(o.stream_id, o.event_id::text)",
        )
        .bind(numbers(ids))
        .execute(&mut *self.transaction);
        within(self.client_limit, "setting events aside", update).await.map(drop)
    }

    /// Does the same for pending events of streams that already waited, a limited number from each lane.
    /// It also covers events that this claim has not read: there may be a million of them before the
    /// next event of another stream.
    async fn set_aside_waiting(&mut self) -> Result<(), Error> {
        let lanes: Vec<i16> = self.waiting.iter().map(|lane| lane.0).collect();
        let share = SET_ASIDE_AT_ONCE / lanes.len().max(1);
        let update = query(
            "WITH page AS MATERIALIZED (
                 SELECT o.id, coalesce(o.stream_id, o.event_id::text) AS stream_key
                 FROM unnest($1::smallint[]) AS claimed (lane)
                 CROSS JOIN LATERAL (
                     SELECT id, stream_id, event_id FROM outbox
                     WHERE outbox.lane = claimed.lane
                       AND outbox.id >= (SELECT last_value FROM outbox_floor)
                       AND processed_at IS NULL AND NOT held AND available_at IS NULL
                     ORDER BY outbox.lane, outbox.id
                     LIMIT $2
                 ) AS o
             )
             UPDATE outbox SET held = true
             WHERE id IN (SELECT page.id FROM page
                          JOIN outbox_holds h ON h.stream_key = page.stream_key)",
        )
        .bind(lanes)
        .bind(i64::try_from(share).unwrap_or(i64::MAX))
        .execute(&mut *self.transaction);
        within(self.client_limit, "setting waiting events aside", update).await.map(drop)
    }

    /// Deletes the holds of streams without held events, and makes the others due at once.
    async fn recover(&mut self, stream_keys: &[String]) -> Result<(), Error> {
        let delete = query(
            "DELETE FROM outbox_holds h
             WHERE h.stream_key = ANY ($1)
               AND NOT EXISTS (SELECT 1 FROM outbox o
                               WHERE coalesce(o.stream_id, o.event_id::text) = h.stream_key
                                 AND o.processed_at IS NULL AND o.held)",
        )
        .bind(stream_keys)
        .execute(&mut *self.transaction);
        within(self.client_limit, "deleting holds", delete).await?;
        let go_on = query(
            "UPDATE outbox_holds SET attempts = 0, until = now() WHERE stream_key = ANY ($1)",
        )
        .bind(stream_keys)
        .execute(&mut *self.transaction);
        within(self.client_limit, "deleting holds", go_on).await.map(drop)
    }
}

fn numbers(ids: &[OutboxId]) -> Vec<i64> {
    ids.iter().map(|id| id.0).collect()
}
