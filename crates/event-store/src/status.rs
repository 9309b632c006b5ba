//! The state of the outbox, for people.

use serde::Serialize;
use sqlx::query;

use crate::row::from_row;
use crate::{Backlog, Error, Session};

/// Everything that an operator asks first.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Events to publish, without those below; counted up to [`Backlog::COUNTED_AT_MOST`].
    pub pending: i64,
    /// Events of streams that wait, counted likewise.
    pub held: i64,
    /// Events whose time has not come, counted likewise.
    pub delayed: i64,
    /// Age in seconds of the oldest event that should have been published.
    pub oldest_age_seconds: f64,
    /// Pending events by lane.
    pub lanes: Vec<Group<i16>>,
    /// Pending events by category: what stands before the first dot of the routing key.
    pub categories: Vec<Group<String>>,
    /// Streams that wait, by reason.
    pub waiting: Vec<WaitingStreams>,
    /// Routing keys without a queue.
    pub unroutable: Vec<UnroutableKey>,
    /// Events inserted and published in the last 10 s, from the newest 100,000 rows that are kept.
    pub rates: Rates,
    /// Transactions that hold up the floor of the outbox, or the fence of the event store.
    pub open_writers: Vec<OpenWriter>,
}

/// How many events belong to something.
#[derive(Debug, Serialize)]
pub struct Group<K> {
    /// What they belong to.
    pub name: K,
    /// How many.
    pub events: i64,
}

/// Streams that wait for one reason.
#[derive(Debug, Serialize)]
pub struct WaitingStreams {
    /// As in [`crate::Reason`].
    pub reason: String,
    /// Whether they wait for a decision.
    pub blocked: bool,
    /// How many.
    pub streams: i64,
}

from_row!(WaitingStreams { reason, blocked, streams });

/// A routing key to which no queue is bound.
#[derive(Debug, Serialize)]
pub struct UnroutableKey {
    /// The missing binding.
    pub routing_key: String,
    /// Streams that wait for it.
    pub streams: i64,
    /// Events that wait with them, counted up to 1,000 a stream.
    pub events: i64,
}

from_row!(UnroutableKey { routing_key, streams, events });

/// Events in a second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Rates {
    /// Inserted.
    pub inserted: f64,
    /// Published.
    pub published: f64,
}

from_row!(Rates { inserted, published });

/// A transaction that writes to `events` or `outbox`.
#[derive(Debug, Serialize)]
pub struct OpenWriter {
    /// The server process; absent for a prepared transaction.
    pub pid: Option<i32>,
    /// Its `application_name`.
    pub application_name: String,
    /// How long it has been open, in seconds, if we may see it.
    pub age_seconds: Option<f64>,
}

from_row!(OpenWriter { pid, application_name, age_seconds });

impl Session {
    /// Reads the state of the outbox.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn status(&mut self) -> Result<Status, Error> {
        let backlog = self.backlog().await?;
        let (lanes, categories) = self.pending_groups().await?;
        Ok(Status {
            pending: backlog.pending,
            held: backlog.held,
            delayed: backlog.delayed,
            oldest_age_seconds: backlog.oldest_age_seconds,
            lanes,
            categories,
            waiting: self.waiting_streams().await?,
            unroutable: self.unroutable_keys().await?,
            rates: self.rates().await?,
            open_writers: self.open_writers().await?,
        })
    }

    async fn pending_groups(&mut self) -> Result<(Vec<Group<i16>>, Vec<Group<String>>), Error> {
        let query = query(
            "SELECT lane, category, count(*)
             FROM (SELECT lane, split_part(routing_key, '.', 1) AS category FROM outbox
                   WHERE id >= (SELECT last_value FROM outbox_floor)
                     AND processed_at IS NULL AND NOT held AND available_at IS NULL
                   LIMIT $1) AS pending
             GROUP BY GROUPING SETS ((lane), (category))
             ORDER BY count(*) DESC, lane, category",
        )
        .bind(Backlog::COUNTED_AT_MOST);
        let rows: Vec<(Option<i16>, Option<String>, i64)> =
            self.read("counting pending events", query).await?;
        let (mut lanes, mut categories) = (Vec::new(), Vec::new());
        for (lane, category, events) in rows {
            if let Some(name) = lane {
                lanes.push(Group { name, events });
            } else if let Some(name) = category {
                categories.push(Group { name, events });
            }
        }
        Ok((lanes, categories))
    }

    /// How many streams wait, by reason.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn waiting_streams(&mut self) -> Result<Vec<WaitingStreams>, Error> {
        let query = query(
            "SELECT reason, blocked, count(*) AS streams FROM outbox_holds
             GROUP BY reason, blocked ORDER BY reason, blocked",
        );
        self.read("counting the streams that wait", query).await
    }

    async fn unroutable_keys(&mut self) -> Result<Vec<UnroutableKey>, Error> {
        let query = query(
            "SELECT o.routing_key, count(*) AS streams, sum(behind.events)::bigint AS events
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
             WHERE h.reason = 'unroutable' AND h.attempts > 0
             GROUP BY o.routing_key
             ORDER BY count(*) DESC, o.routing_key
             LIMIT 100",
        );
        self.read("reading the unroutable events", query).await
    }

    async fn rates(&mut self) -> Result<Rates, Error> {
        let query = query(
            "SELECT count(*) FILTER (WHERE created_at > now() - interval '10 s')::float8 / 10
                        AS inserted,
                    count(*) FILTER (WHERE processed_at > now() - interval '10 s')::float8 / 10
                        AS published
             FROM (SELECT created_at, processed_at FROM outbox ORDER BY id DESC LIMIT 100000)
                  AS newest",
        );
        let rows: Vec<Rates> = self.read("reading the rates", query).await?;
        Ok(rows.first().copied().unwrap_or_default())
    }

    async fn open_writers(&mut self) -> Result<Vec<OpenWriter>, Error> {
        let query = query(
            "SELECT DISTINCT l.pid, coalesce(a.application_name, '') AS application_name,
                    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_seconds
             FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'
               AND l.relation IN ('events'::regclass, 'outbox'::regclass)
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (a.xact_start IS NULL OR a.xact_start < clock_timestamp() - interval '1 s')
             ORDER BY age_seconds DESC NULLS FIRST",
        );
        self.read("reading the open writers", query).await
    }

    /// How many workers of relays are connected, ours included.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn count_workers(&mut self, application_name: &str) -> Result<u32, Error> {
        let query = query(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = $1",
        )
        .bind(application_name);
        let rows: Vec<(i64,)> = self.read("counting the workers", query).await?;
        Ok(rows.first().and_then(|(count,)| u32::try_from(*count).ok()).unwrap_or_default())
    }
}
