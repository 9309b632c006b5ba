//! Streams that wait, and the decisions of operators about them.
//!
//! A stream waits (it has a row in `outbox_holds`) until a time, or until a person decides: then it is
//! *parked*. Commands too change a hold only under the lock of its lane, because a worker that has
//! claimed the lane may be publishing the event.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Postgres, Transaction, query, query_as};
use uuid::Uuid;

use crate::row::from_row;
use crate::session::{Mode, within};
use crate::{Error, OutboxId, Session};

/// A stream that waits, and the event that it waits for.
#[derive(Debug, Clone, Serialize)]
pub struct WaitingStream {
    /// The row of the event in the outbox. Commands identify the event by it.
    pub id: i64,
    /// The stream. An event without a stream has its event id here.
    pub stream_key: String,
    /// Whether it is parked: it waits for a decision, not for a time.
    pub parked: bool,
    /// The kind of failure, the name of a [`crate::Reason`].
    pub reason: String,
    /// What happened, and what to do about it.
    pub last_error: String,
    /// How often publishing the event has failed.
    pub attempts: i32,
    /// Since when the stream has waited.
    pub since: DateTime<Utc>,
    /// When the event is retried; `None` if the stream is parked.
    pub until: Option<DateTime<Utc>>,
    /// The id of the event.
    pub event_id: Uuid,
    /// Its version in the stream.
    pub stream_version: Option<i64>,
    /// Its type.
    pub event_type: String,
    /// The routing key of its message.
    pub routing_key: String,
    /// Length of its payload in bytes.
    pub bytes: i32,
    /// Events of the stream that wait, this one included. Counted up to 1,000.
    pub events: i64,
}

from_row!(WaitingStream {
    id,
    stream_key,
    parked,
    reason,
    last_error,
    attempts,
    since,
    until,
    event_id,
    stream_version,
    event_type,
    routing_key,
    bytes,
    events
});

/// Which waiting streams to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Those that wait for a decision.
    Parked,
    /// All waiting streams.
    All,
    /// The one that waits for this event.
    For(OutboxId),
}

impl Waiting {
    /// At most this many streams are returned.
    pub const LIMIT: usize = 1_000;
}

/// A decision of an operator, recorded in `outbox_audit`.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'d> {
    /// Who decided, as far as known.
    pub actor: &'d str,
    /// Why.
    pub reason: Option<&'d str>,
}

impl Session {
    /// Streams that wait, beginning with the one that has waited longest.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn waiting(&mut self, which: Waiting) -> Result<Vec<WaitingStream>, Error> {
        let query = query(
            "SELECT o.id, h.stream_key, h.blocked AS parked, h.reason, h.last_error, h.attempts, h.since,
                    nullif(h.until, 'infinity') AS until, o.event_id, o.stream_version,
                    o.event_type, o.routing_key, octet_length(o.payload::text) AS bytes,
                    behind.events
             FROM outbox_holds h
             JOIN outbox o ON o.id = h.outbox_id
             CROSS JOIN LATERAL (
                 SELECT count(*) AS events FROM (
                     SELECT 1 FROM outbox w
                     WHERE coalesce(w.stream_id, w.event_id::text) = h.stream_key
                       AND w.processed_at IS NULL AND w.held
                     LIMIT 1000
                 ) AS counted
             ) AS behind
             WHERE ($1::bigint IS NULL OR h.outbox_id = $1) AND (h.blocked OR NOT $2)
               AND o.processed_at IS NULL
             ORDER BY h.since, h.stream_key
             LIMIT $3",
        )
        .bind(if let Waiting::For(id) = which { Some(id.0) } else { None })
        .bind(which == Waiting::Parked)
        .bind(i64::try_from(Waiting::LIMIT).unwrap_or(i64::MAX));
        self.run(Mode::Read, "reading the streams that wait", query).await
    }

    /// The payload of an event that a stream waits for.
    ///
    /// # Errors
    ///
    /// [`Error::NotWaiting`], or when the statement fails.
    pub async fn waiting_payload(&mut self, id: OutboxId) -> Result<String, Error> {
        let query = query(
            "SELECT o.payload::text FROM outbox o JOIN outbox_holds h ON h.outbox_id = o.id
             WHERE o.id = $1",
        )
        .bind(id.0);
        let rows: Vec<(String,)> = self.run(Mode::Read, "reading an event", query).await?;
        rows.into_iter().next().map(|(payload,)| payload).ok_or(Error::NotWaiting { id: id.0 })
    }

    /// Makes a stream retry its event at once. One earlier failure stays counted, because a claim
    /// reads the events behind the first one only after that was published.
    ///
    /// # Errors
    ///
    /// [`Error::NotWaiting`], or when a statement fails. Then nothing is changed.
    pub async fn retry(&mut self, id: OutboxId, decision: Decision<'_>) -> Result<(), Error> {
        let limit = self.client_limit();
        let mut transaction = self.lock_waiting(id).await?;
        audit(&mut transaction, limit, "retry", id, decision).await?;
        let update = query(
            "UPDATE outbox_holds SET blocked = false, attempts = least(attempts, 1), until = now()
             WHERE outbox_id = $1",
        )
        .bind(id.0)
        .execute(&mut *transaction);
        within(limit, "retrying an event", update).await?;
        within(limit, "retrying an event", transaction.commit()).await
    }

    /// Skips an event: it is never published, and its stream continues with the next one.
    ///
    /// # Errors
    ///
    /// [`Error::NotWaiting`], or when a statement fails. Then nothing is changed.
    pub async fn skip(&mut self, id: OutboxId, decision: Decision<'_>) -> Result<(), Error> {
        let limit = self.client_limit();
        let mut transaction = self.lock_waiting(id).await?;
        audit(&mut transaction, limit, "skip", id, decision).await?;
        let mark =
            query("UPDATE outbox SET processed_at = clock_timestamp(), held = false WHERE id = $1")
                .bind(id.0)
                .execute(&mut *transaction);
        within(limit, "skipping an event", mark).await?;
        let go_on = query(
            "UPDATE outbox_holds SET blocked = false, attempts = 0, until = now()
             WHERE outbox_id = $1",
        )
        .bind(id.0)
        .execute(&mut *transaction);
        within(limit, "skipping an event", go_on).await?;
        within(limit, "skipping an event", transaction.commit()).await
    }

    /// Begins a transaction that has locked the lane of a waiting event.
    async fn lock_waiting(&mut self, id: OutboxId) -> Result<Transaction<'_, Postgres>, Error> {
        let limit = self.client_limit();
        let mut transaction = self.begin_claim().await?;
        let lock = query_as(
            "SELECT l.lane FROM outbox_lanes l
             WHERE l.lane = (SELECT h.lane FROM outbox_holds h WHERE h.outbox_id = $1)
             FOR UPDATE",
        )
        .bind(id.0)
        .fetch_optional(&mut *transaction);
        let locked: Option<(i16,)> = within(limit, "locking the lane of the event", lock).await?;
        // In a further statement: while this one waited for the lock, a relay may have published the event.
        let check = query_as("SELECT lane FROM outbox_holds WHERE outbox_id = $1")
            .bind(id.0)
            .fetch_optional(&mut *transaction);
        let found: Option<(i16,)> =
            within(limit, "checking that the event still waits", check).await?;
        if locked.is_some() && found == locked {
            Ok(transaction)
        } else {
            within(limit, "releasing the lane", transaction.rollback()).await?;
            Err(Error::NotWaiting { id: id.0 })
        }
    }
}

async fn audit(
    transaction: &mut Transaction<'_, Postgres>,
    limit: std::time::Duration,
    action: &str,
    id: OutboxId,
    decision: Decision<'_>,
) -> Result<(), Error> {
    let insert = query(
        "INSERT INTO outbox_audit
             (actor, action, outbox_id, event_id, stream_id, event_type, reason)
         SELECT $2, $3, o.id, o.event_id, o.stream_id, o.event_type, $4
         FROM outbox o WHERE o.id = $1",
    )
    .bind(id.0)
    .bind(decision.actor)
    .bind(action)
    .bind(decision.reason)
    .execute(&mut **transaction);
    within(limit, "recording a decision", insert).await.map(drop)
}
