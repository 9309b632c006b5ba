//! Streams that wait, and the decisions of operators about them.
//!
//! A stream waits (it has a row in `outbox_holds`) until a time, or until a person decides: then it is
//! *parked*. Commands too change a hold only under the lock of its lane, because a worker that has
//! claimed the lane may be publishing the event.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, Postgres, Transaction, query, query_as};
use uuid::Uuid;

use crate::row::from_row;
use crate::selection::PgQuery;
use crate::session::{LOCK_LIMIT, Mode, within};
use crate::{Error, Lane, OutboxId, Reason, Session};

/// How many streams of a lane are retried in one transaction.
const RETRIED_AT_ONCE: i64 = 10_000;

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

/// Which waiting streams are meant. A stream must match every field that is set; the default is all.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    /// The one that waits for this event.
    pub id: Option<OutboxId>,
    /// Only those that wait for a decision.
    pub parked: bool,
    /// Why they wait.
    pub reason: Option<Reason>,
    /// The routing key of the event that they wait for.
    pub routing_key: Option<String>,
    /// The first word of its routing key.
    pub category: Option<String>,
    /// A part of [`WaitingStream::last_error`].
    pub error: Option<String>,
}

/// The SQL condition of [`Waiting`] on a hold `h` and its outbox row `o`. Its values are the first six
/// parameters.
macro_rules! meant {
    () => {
        "($1::bigint IS NULL OR h.outbox_id = $1)
               AND (h.blocked OR NOT $2)
               AND ($3::text IS NULL OR h.reason = $3)
               AND ($4::text IS NULL OR o.routing_key = $4)
               AND ($5::text IS NULL OR split_part(o.routing_key, '.', 1) = $5)
               AND ($6::text IS NULL OR strpos(h.last_error, $6) > 0)
               AND o.processed_at IS NULL"
    };
}

impl Waiting {
    /// At most this many streams are listed.
    pub const LIMIT: usize = 1_000;

    /// The stream that waits for an event.
    pub fn of(id: OutboxId) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    fn bind<'q>(&'q self, query: PgQuery<'q>) -> PgQuery<'q> {
        query
            .bind(self.id.map(|id| id.0))
            .bind(self.parked)
            .bind(self.reason.map(Reason::as_str))
            .bind(&self.routing_key)
            .bind(&self.category)
            .bind(&self.error)
    }
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
    pub async fn waiting(&mut self, which: &Waiting) -> Result<Vec<WaitingStream>, Error> {
        let query = query(concat!(
            "SELECT o.id, h.stream_key, h.blocked AS parked, h.reason, h.last_error, h.attempts, h.since,
                    nullif(h.until, 'infinity') AS until, o.event_id, o.stream_version,
                    o.event_type, o.routing_key, octet_length(o.payload::text) AS bytes,
                    behind.events
             FROM (
                 SELECT h.* FROM outbox_holds h JOIN outbox o ON o.id = h.outbox_id
                 WHERE ",
            meant!(),
            "
                 ORDER BY h.since, h.stream_key
                 LIMIT $7
             ) AS h
             JOIN outbox o ON o.id = h.outbox_id
             CROSS JOIN LATERAL (
                 SELECT count(*) AS events FROM (
                     SELECT 1 FROM outbox w
                     WHERE coalesce(w.stream_id, w.event_id::text) = h.stream_key
                       AND w.processed_at IS NULL AND w.held
                     LIMIT 1000
                 ) AS counted
             ) AS behind
             ORDER BY h.since, h.stream_key"
        ));
        let query = which.bind(query).bind(i64::try_from(Waiting::LIMIT).unwrap_or(i64::MAX));
        self.run(Mode::Read, "reading the streams that wait", query).await
    }

    /// Counts the streams that wait, by lane.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn count_waiting(&mut self, which: &Waiting) -> Result<Vec<(Lane, i64)>, Error> {
        let count = query(concat!(
            "SELECT h.lane, count(*)
             FROM outbox_holds h JOIN outbox o ON o.id = h.outbox_id
             WHERE ",
            meant!(),
            "
             GROUP BY h.lane
             ORDER BY h.lane"
        ));
        let rows: Vec<(i16, i64)> =
            self.run(Mode::Read, "counting the streams that wait", which.bind(count)).await?;
        Ok(rows.into_iter().map(|(lane, streams)| (Lane(lane), streams)).collect())
    }

    /// Makes the waiting streams of one lane retry their events, like [`Session::retry`]. Returns how many
    /// there were.
    ///
    /// # Errors
    ///
    /// When a statement fails. Then some of them may be retried.
    pub async fn retry_lane(
        &mut self,
        lane: Lane,
        which: &Waiting,
        decision: Decision<'_>,
    ) -> Result<u64, Error> {
        let (limit, mut total, mut after) = (self.client_limit(), 0, String::new());
        loop {
            let mut transaction = self.begin_claim().await?;
            lock_lane(&mut transaction, limit, lane.0).await?;
            let retry = query(concat!(
                "WITH chosen AS MATERIALIZED (
                     SELECT h.stream_key, o.id, o.event_id, o.stream_id, o.event_type
                     FROM outbox_holds h JOIN outbox o ON o.id = h.outbox_id
                     WHERE h.lane = $7 AND h.stream_key > $8
                       AND ",
                meant!(),
                "
                     ORDER BY h.stream_key
                     LIMIT $9
                 ), audited AS (
                     INSERT INTO outbox_audit
                         (actor, action, outbox_id, event_id, stream_id, event_type, reason)
                     SELECT $10, 'retry', id, event_id, stream_id, event_type, $11 FROM chosen
                 ), retried AS (
                     UPDATE outbox_holds h
                     SET blocked = false, attempts = least(h.attempts, 1), until = now()
                     FROM chosen WHERE h.stream_key = chosen.stream_key
                 )
                 SELECT count(*), max(stream_key) FROM chosen"
            ));
            let retry = which.bind(retry).bind(lane.0).bind(&after).bind(RETRIED_AT_ONCE);
            let retry = retry.bind(decision.actor).bind(decision.reason);
            let retried = retry.fetch_one(&mut *transaction);
            let row = within(limit, "retrying the events of a lane", retried).await?;
            within(limit, "retrying the events of a lane", transaction.commit()).await?;
            let (count, last) = <(i64, Option<String>)>::from_row(&row)
                .map_err(|source| Error::statement("retrying the events of a lane", source))?;
            total += count.unsigned_abs();
            match last {
                Some(last) if count == RETRIED_AT_ONCE => after = last,
                _ => return Ok(total),
            }
        }
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
        let lane = lane_of(&mut transaction, limit, id).await?;
        if let Some(lane) = lane {
            lock_lane(&mut transaction, limit, lane).await?;
            // While the lock was awaited, a relay may have published the event.
            if lane_of(&mut transaction, limit, id).await? == Some(lane) {
                return Ok(transaction);
            }
        }
        within(limit, "releasing the lane", transaction.rollback()).await?;
        Err(Error::NotWaiting { id: id.0 })
    }
}

async fn lane_of(
    transaction: &mut Transaction<'_, Postgres>,
    limit: Duration,
    id: OutboxId,
) -> Result<Option<i16>, Error> {
    let read = query_as("SELECT lane FROM outbox_holds WHERE outbox_id = $1")
        .bind(id.0)
        .fetch_optional(&mut **transaction);
    let found: Option<(i16,)> = within(limit, "checking that the event waits", read).await?;
    Ok(found.map(|(lane,)| lane))
}

/// Waits for the lock of a lane. A relay may hold it for [`LOCK_LIMIT`], which is longer than a statement of
/// a claim may take.
async fn lock_lane(
    transaction: &mut Transaction<'_, Postgres>,
    limit: Duration,
    lane: i16,
) -> Result<(), Error> {
    let patience = (LOCK_LIMIT + Duration::from_secs(5)).as_millis().to_string();
    let before: (String,) = {
        let read = query_as("SELECT current_setting('statement_timeout')");
        within(limit, "reading the limits of a claim", read.fetch_one(&mut **transaction)).await?
    };
    let set = "SELECT set_config('statement_timeout', $1, true)";
    let wait = query(set).bind(&patience).execute(&mut **transaction);
    within(limit, "locking a lane", wait).await?;
    let lock = query("SELECT FROM outbox_lanes WHERE lane = $1 FOR UPDATE")
        .bind(lane)
        .execute(&mut **transaction);
    within(limit, "locking a lane", lock).await?;
    let restore = query(set).bind(&before.0).execute(&mut **transaction);
    within(limit, "locking a lane", restore).await.map(drop)
}

async fn audit(
    transaction: &mut Transaction<'_, Postgres>,
    limit: Duration,
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
