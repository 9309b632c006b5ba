//! The fence: the position up to which no more events can appear.
//!
//! A row gets its position at the insert, but becomes visible at the commit of its transaction. A
//! reader that continues after the highest position it has seen would therefore miss rows that commit
//! later at lower positions. The fence uses the table lock that a writer takes before it gets a
//! position and keeps until its transaction ends, also if that is a prepared transaction. First the
//! last position, `limit`, is read, then the transactions that hold the lock. Once all of these have
//! ended, every position up to `limit` is either visible or rolled back: the fence is *decided*.

use std::time::Duration;

use domain_events::Position;
use sqlx::{query_as, query_scalar};

use crate::session::within;
use crate::{Error, Session};

/// A position, and the open transactions that may still commit events at or below it.
#[derive(Debug)]
pub struct Fence {
    table: Table,
    limit: Position,
    writers: Vec<String>,
}

/// A table whose identity column orders its rows.
#[derive(Debug, Clone, Copy)]
enum Table {
    Events,
    Outbox,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Outbox => "outbox",
        }
    }

    /// The query for the last number given out. `pg_sequence_last_value` would return NULL to a role
    /// without the right to read the sequence.
    fn last(self) -> &'static str {
        match self {
            Self::Events => {
                "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_position_seq"
            }
            Self::Outbox => {
                "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq"
            }
        }
    }
}

/// A transaction that a fence waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct Writer {
    /// The server process; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Its `application_name`.
    pub application_name: String,
    /// How long the transaction has been open, in seconds; `None` without the right to see it.
    pub age_seconds: Option<f64>,
}

impl Fence {
    /// How long a reader should wait for a fence to be decided before it reports the open writers.
    pub const PATIENCE: Duration = Duration::from_secs(10);
    /// How long to wait between two calls of [`Session::refresh_fence`].
    pub const POLL: Duration = Duration::from_millis(50);

    /// The last position that was given out when the fence was taken.
    pub fn limit(&self) -> Position {
        self.limit
    }

    /// Whether every event up to [`Fence::limit`] is visible or rolled back.
    pub fn is_decided(&self) -> bool {
        self.writers.is_empty()
    }
}

impl Session {
    /// Takes a fence on the events.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn take_fence(&mut self) -> Result<Fence, Error> {
        self.fence(Table::Events).await
    }

    /// Takes a fence on the rows of the outbox; its limit is an id.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn take_outbox_fence(&mut self) -> Result<Fence, Error> {
        self.fence(Table::Outbox).await
    }

    async fn fence(&mut self, table: Table) -> Result<Fence, Error> {
        // Two statements, in this order: the writers must be read after the limit.
        let last: i64 = within(
            self.client_limit(),
            "reading the last position",
            query_scalar(table.last()).fetch_one(&mut self.connection),
        )
        .await?;
        let limit = Position::new(last).map_err(|source| Error::Row {
            table: table.name(),
            id: 0,
            source,
        })?;
        Ok(Fence { table, limit, writers: self.writers(table).await? })
    }

    /// Checks which of the transactions that the fence waits for are still open.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn refresh_fence(&mut self, fence: &mut Fence) -> Result<(), Error> {
        if !fence.is_decided() {
            let open = self.writers(fence.table).await?;
            fence.writers.retain(|writer| open.contains(writer));
        }
        Ok(())
    }

    /// The transactions that the fence waits for.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn fence_writers(&mut self, fence: &Fence) -> Result<Vec<Writer>, Error> {
        let rows: Vec<(Option<i32>, String, Option<f64>)> = within(
            self.client_limit(),
            "reading the writers that hold up the fence",
            query_as(
                "SELECT l.pid, coalesce(a.application_name, ''),
                        extract(epoch FROM clock_timestamp() - a.xact_start)::float8
                 FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                 WHERE l.locktype = 'relation' AND l.relation = $2::text::regclass
                   AND l.mode = 'RowExclusiveLock' AND l.virtualtransaction = ANY ($1)
                   AND l.database = (SELECT oid FROM pg_database
                                     WHERE datname = current_database())",
            )
            .bind(&fence.writers)
            .bind(fence.table.name())
            .fetch_all(&mut self.connection),
        )
        .await?;
        let writer =
            |(pid, application_name, age_seconds)| Writer { pid, application_name, age_seconds };
        Ok(rows.into_iter().map(writer).collect())
    }

    async fn writers(&mut self, table: Table) -> Result<Vec<String>, Error> {
        within(
            self.client_limit(),
            "reading the open writers",
            query_scalar(
                "SELECT virtualtransaction FROM pg_locks
                 WHERE locktype = 'relation' AND relation = $1::text::regclass
                   AND mode = 'RowExclusiveLock'
                   AND database = (SELECT oid FROM pg_database
                                   WHERE datname = current_database())",
            )
            .bind(table.name())
            .fetch_all(&mut self.connection),
        )
        .await
    }
}
