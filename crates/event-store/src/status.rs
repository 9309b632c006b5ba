//! The state of the outbox, for operators.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row, query};

use crate::row::from_row;
use crate::session::Mode;
use crate::{Backlog, Error, Rows, Session};

/// What an operator needs to know first.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Events to publish next, without held and delayed ones. Counted up to
    /// [`Backlog::COUNTED_AT_MOST`].
    pub pending: i64,
    /// Events of streams that wait. Counted up to the same limit.
    pub held: i64,
    /// Events whose `available_at` is in the future. Counted up to the same limit.
    pub delayed: i64,
    /// Age in seconds of the oldest pending event.
    pub oldest_age_seconds: f64,
    /// Age in seconds of the oldest event that could not be published.
    pub oldest_held_age_seconds: f64,
    /// Pending events by lane.
    pub lanes: Vec<Group<i16>>,
    /// Pending events by category, the first word of the routing key.
    pub categories: Vec<Group<String>>,
    /// Streams that wait, by reason.
    pub waiting: Vec<WaitingStreams>,
    /// Routing keys for which no queue is bound.
    pub unroutable: Vec<UnroutableKey>,
    /// Insertion and publication in the last 10 s, computed from the newest 100,000 rows.
    pub rates: Rates,
    /// Transactions that hold up the floor of the outbox or a fence of the event store.
    pub open_writers: Vec<OpenTransaction>,
    /// The sessions of relays.
    pub relays: Vec<Relay>,
    /// Sessions other than relays that have locked lanes.
    pub lane_lockers: Vec<LaneLocker>,
}

/// A session of a relay.
#[derive(Debug, Serialize)]
pub struct Relay {
    /// The server process.
    pub pid: i32,
    /// Its `application_name`. That of the survey begins with [`Relay::NAME`] and continues with what the
    /// relay reports.
    pub application_name: String,
    /// The address that it connects from; `None` for a socket, or without the right to see it.
    pub client: Option<String>,
}

from_row!(Relay { pid, application_name, client });

impl Relay {
    /// The `application_name` of a relay's survey, before what it reports.
    pub const NAME: &'static str = "outbox-relay survey";

    /// What the relay reports of the broker; `None` if all is well, or if another session of it does.
    pub fn report(&self) -> Option<RelayReport<'_>> {
        let report = self.application_name.strip_prefix(Self::NAME)?.strip_prefix(": ")?;
        let (report, since) = report.rsplit_once(" since ")?;
        let since = DateTime::parse_from_rfc3339(since).ok().map(|since| since.with_timezone(&Utc));
        Some(RelayReport { slow: report.strip_prefix("slow "), since })
    }
}

/// What a relay reports of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayReport<'r> {
    /// How many events per second the broker confirms; `None` if the relay cannot publish at all.
    pub slow: Option<&'r str>,
    /// Since when.
    pub since: Option<DateTime<Utc>>,
}

impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.client.as_deref().unwrap_or("this host");
        write!(f, "the relay on {host} (session {} in PostgreSQL)", self.pid)
    }
}

/// A transaction that has not ended.
#[derive(Debug, Clone, Serialize)]
pub struct OpenTransaction {
    /// The server process; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Its `application_name`.
    pub application_name: String,
    /// The name of a prepared transaction.
    pub prepared: Option<String>,
    /// Since when it has been open or prepared; `None` without the right to see it.
    pub since: Option<DateTime<Utc>>,
    /// The same as an age in seconds.
    pub age_seconds: Option<f64>,
}

from_row!(OpenTransaction { pid, application_name, prepared, since, age_seconds });

/// A transaction that has been open for so long is worth a look.
const LONG_TRANSACTION_SECONDS: f64 = 60.0;

impl OpenTransaction {
    /// Whether it has been open for a minute. Without the right to see when it began, it counts as short: every
    /// append of another role would be suspected.
    pub fn is_long(&self) -> bool {
        self.age_seconds.is_some_and(|age| age >= LONG_TRANSACTION_SECONDS)
    }

    /// What it does if it has appended events, as a sentence.
    pub fn as_writer(&self) -> String {
        format!("{self} has appended and not ended, so that no order of events is decided")
    }

    /// How to end it.
    pub fn remedy(&self) -> String {
        match (self.pid, &self.prepared) {
            (Some(pid), _) => {
                format!("end its transaction, or run SELECT pg_terminate_backend({pid})")
            }
            (None, Some(name)) => {
                let name = name.replace('\'', "''");
                format!("run COMMIT PREPARED '{name}' or ROLLBACK PREPARED '{name}'")
            }
            (None, None) => "find it in pg_prepared_xacts, and commit or roll it back".to_owned(),
        }
    }
}

impl fmt::Display for OpenTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.prepared) {
            (Some(pid), _) => write!(f, "pid {pid} ({:?})", self.application_name),
            (None, Some(name)) => write!(f, "the prepared transaction {name:?}"),
            (None, None) => f.write_str("a prepared transaction"),
        }
    }
}

/// A transaction that has locked lanes, so that no relay can publish their events.
#[derive(Debug, Serialize)]
pub struct LaneLocker {
    /// The transaction.
    #[serde(flatten)]
    pub transaction: OpenTransaction,
    /// How many lanes it has locked.
    pub lanes: i64,
}

impl FromRow<'_, PgRow> for LaneLocker {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { transaction: OpenTransaction::from_row(row)?, lanes: row.try_get("lanes")? })
    }
}

/// The number of events of one lane or category.
#[derive(Debug, Serialize)]
pub struct Group<K> {
    /// The lane or category.
    pub name: K,
    /// The number of events.
    pub events: i64,
}

/// The number of streams that wait for one reason.
#[derive(Debug, Serialize)]
pub struct WaitingStreams {
    /// The name of a [`crate::Reason`].
    pub reason: String,
    /// Whether they are parked: they wait for a decision.
    pub parked: bool,
    /// The number of streams.
    pub streams: i64,
    /// Since when the first of them has waited.
    pub since: DateTime<Utc>,
}

from_row!(WaitingStreams { reason, parked, streams, since });

/// A routing key for which no queue is bound.
#[derive(Debug, Serialize)]
pub struct UnroutableKey {
    /// The routing key.
    pub routing_key: String,
    /// Streams that wait for a binding.
    pub streams: i64,
    /// Events of these streams that wait, counted up to 1,000 per stream.
    pub events: i64,
    /// Since when the first of them has waited.
    pub since: DateTime<Utc>,
}

from_row!(UnroutableKey { routing_key, streams, events, since });

/// Events per second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Rates {
    /// Inserted into the outbox.
    pub inserted: f64,
    /// Published.
    pub published: f64,
}

from_row!(Rates { inserted, published });

impl Session {
    /// Reads the state of the outbox.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn status(&mut self) -> Result<Status, Error> {
        let backlog = self.backlog(Rows::All).await?;
        let (lanes, categories) = self.pending_groups().await?;
        Ok(Status {
            pending: backlog.pending,
            held: backlog.held,
            delayed: backlog.delayed,
            oldest_age_seconds: backlog.oldest_age_seconds,
            oldest_held_age_seconds: backlog.oldest_held_age_seconds,
            lanes,
            categories,
            waiting: self.waiting_streams().await?,
            unroutable: self.unroutable_keys().await?,
            rates: self.rates().await?,
            open_writers: self.open_writers().await?,
            relays: self.relays().await?,
            lane_lockers: self.lane_lockers().await?,
        })
    }

    async fn pending_groups(&mut self) -> Result<(Vec<Group<i16>>, Vec<Group<String>>), Error> {
        let query = query(
            "SELECT lane, category, count(*)
             FROM (SELECT lane, split_part(routing_key, '.', 1) AS category FROM outbox
                   WHERE processed_at IS NULL AND NOT held AND available_at IS NULL
                   LIMIT $1) AS pending
             GROUP BY GROUPING SETS ((lane), (category))
             ORDER BY count(*) DESC, lane, category",
        )
        .bind(Backlog::COUNTED_AT_MOST);
        let rows: Vec<(Option<i16>, Option<String>, i64)> =
            self.run(Mode::Read, "counting pending events", query).await?;
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

    /// Counts the streams that wait, by reason.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn waiting_streams(&mut self) -> Result<Vec<WaitingStreams>, Error> {
        let query = query(
            "SELECT reason, blocked AS parked, count(*) AS streams, min(since) AS since
             FROM outbox_holds
             GROUP BY reason, blocked ORDER BY reason, blocked",
        );
        self.run(Mode::Read, "counting the streams that wait", query).await
    }

    async fn unroutable_keys(&mut self) -> Result<Vec<UnroutableKey>, Error> {
        let query = query(
            "SELECT o.routing_key, count(*) AS streams, sum(behind.events)::bigint AS events,
                    min(h.since) AS since
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
        self.run(Mode::Read, "reading the unroutable events", query).await
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
        let rows: Vec<Rates> = self.run(Mode::Read, "reading the rates", query).await?;
        Ok(rows.first().copied().unwrap_or_default())
    }

    /// Transactions that have been open for a second, and hold up the floor of the outbox or a fence of the event
    /// store.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn open_writers(&mut self) -> Result<Vec<OpenTransaction>, Error> {
        let query = query(
            "SELECT DISTINCT l.pid, coalesce(a.application_name, '') AS application_name,
                    p.gid AS prepared, coalesce(a.xact_start, p.prepared) AS since,
                    extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8
                        AS age_seconds
             FROM pg_locks l
             LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             LEFT JOIN pg_prepared_xacts p
                    ON l.pid IS NULL AND l.virtualtransaction = '-1/' || p.transaction::text
             WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'
               AND l.relation IN ('events'::regclass, 'outbox'::regclass)
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (a.xact_start IS NULL OR a.xact_start < clock_timestamp() - interval '1 s')
             ORDER BY age_seconds DESC NULLS FIRST",
        );
        self.run(Mode::Read, "reading the open writers", query).await
    }

    /// The sessions of the relays that are connected.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn relays(&mut self) -> Result<Vec<Relay>, Error> {
        // A pooler may keep the session of a relay that has ended, and lend that of a running one to others.
        // Each relay does something every second.
        let query = query(
            "SELECT pid, application_name, host(client_addr) AS client FROM pg_stat_activity
             WHERE datname = current_database() AND starts_with(application_name, 'outbox-relay')
               AND application_name NOT IN ('outbox-relay command', 'outbox-relay migrate')
               AND (state_change IS NULL OR state_change > clock_timestamp() - interval '15 s')
             ORDER BY pid",
        );
        self.run(Mode::Read, "reading the relays", query).await
    }

    /// Sessions that have locked lanes for 2 s or longer, without the workers of relays.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn lane_lockers(&mut self) -> Result<Vec<LaneLocker>, Error> {
        let query = query(
            "SELECT l.pid, coalesce(a.application_name, '') AS application_name,
                    p.gid AS prepared, coalesce(a.xact_start, p.prepared) AS since,
                    extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8
                        AS age_seconds,
                    count(*) AS lanes
             FROM outbox_lanes o
             JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted
                            AND l.transactionid = o.xmax
             LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid
             -- A command holds a lane for a moment, which is all that others can see of it.
             WHERE coalesce(a.application_name, '')
                       NOT IN ('outbox-relay worker', 'outbox-relay command')
               AND (a.xact_start IS NULL OR a.xact_start < clock_timestamp() - interval '2 s')
             GROUP BY l.pid, a.application_name, p.gid, a.xact_start, p.prepared
             ORDER BY count(*) DESC, l.pid",
        );
        self.run(Mode::Scan, "reading who has locked lanes", query).await
    }

    /// Changes the `application_name` of this session, by which others see what it reports.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn show_as(&mut self, application_name: &str) -> Result<(), Error> {
        let query =
            query("SELECT set_config('application_name', $1, false)").bind(application_name);
        let _shown: Vec<(String,)> = self.run(Mode::Write, "reporting the state", query).await?;
        Ok(())
    }

    /// Counts the connected workers of all relays, ours included.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn count_workers(&mut self, application_name: &str) -> Result<u32, Error> {
        let query = query(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = $1",
        )
        .bind(application_name);
        let rows: Vec<(i64,)> = self.run(Mode::Read, "counting the workers", query).await?;
        Ok(rows.first().and_then(|(count,)| u32::try_from(*count).ok()).unwrap_or_default())
    }
}
