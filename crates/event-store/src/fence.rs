//! The fence: up to which position the order of events is decided.
//!
//! A position is handed out when a row is inserted, but the row is seen when its transaction
//! commits; a reader that stops at the highest position it sees loses what commits later below it.
//! A writer, however, locks the table before it takes a position, and keeps the lock until it ends,
//! prepared transactions included. So, once every transaction that held that lock after `limit` was
//! read has ended, each position up to `limit` is either visible or rolled back.

use domain_events::Position;
use sqlx::{query_as, query_scalar};

use crate::session::within;
use crate::{Error, Session};

/// A position, and the transactions that may still insert at or below it.
#[derive(Debug)]
pub struct Fence {
    table: Table,
    limit: Position,
    writers: Vec<String>,
}

/// A table whose identity column gives an order.
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

    /// Not by `pg_sequence_last_value`, which tells nothing to a role that may not read it.
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
    /// The server process; absent for a prepared transaction.
    pub pid: Option<i32>,
    /// Its `application_name`.
    pub application_name: String,
    /// How long the transaction has been open, in seconds, if we may see it.
    pub age_seconds: Option<f64>,
}

impl Fence {
    /// The last position that was handed out when the fence was taken.
    pub fn limit(&self) -> Position {
        self.limit
    }

    /// Whether events up to [`Fence::limit`] can be read in order.
    pub fn is_decided(&self) -> bool {
        self.writers.is_empty()
    }
}

impl Session {
    /// Takes a fence on the events.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn take_fence(&mut self) -> Result<Fence, Error> {
        self.fence(Table::Events).await
    }

    /// Takes a fence on the rows of the outbox; its limit is an id.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
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

    /// Looks again at the transactions that the fence waits for.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn refresh_fence(&mut self, fence: &mut Fence) -> Result<(), Error> {
        if !fence.is_decided() {
            let open = self.writers(fence.table).await?;
            fence.writers.retain(|writer| open.contains(writer));
        }
        Ok(())
    }

    /// Who holds the fence up.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn fence_writers(&mut self, fence: &Fence) -> Result<Vec<Writer>, Error> {
        let rows: Vec<(Option<i32>, String, Option<f64>)> = within(
            self.client_limit(),
            "asking who holds up the fence",
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
