//! Shadow tables: a projection's tables in another database, and the swap that puts them in service.
//!
//! They have the same names as the tables in service, so that a session with the other database applies
//! events to them without change.

use std::time::Duration;

use domain_events::Position;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, query, query_as, query_scalar};
use tokio::time::timeout;
use uuid::Uuid;

use crate::batching::quoted;
use crate::error::number;
use crate::error_codes::{
    ER_DBACCESS_DENIED_ERROR, ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, ER_QUERY_INTERRUPTED,
};
use crate::session::{LONG_LIMIT, within};
use crate::{Error, JobState, Ledger, Options, Session};
use projection::Projection;

/// The longest time that a swap may wait for readers of the tables. All later readers wait behind it.
const SWAP_LIMIT: Duration = Duration::from_millis(300);

/// The databases of a rebuild.
#[derive(Debug, Clone)]
pub struct Databases {
    /// The database of the read models.
    pub live: String,
    /// The database in which new tables are built.
    pub new: String,
    /// The database in which previous tables are kept.
    pub old: String,
    /// The database in which reference tables are built for a comparison.
    pub verify: String,
}

impl Databases {
    /// The databases for the read models in `live`.
    pub fn beside(live: &str) -> Self {
        Self {
            live: live.to_owned(),
            new: beside(live, "__new"),
            old: beside(live, "__old"),
            verify: beside(live, "__verify"),
        }
    }
}

/// The most characters of the name of a database.
const DATABASE_NAME_MAX: usize = 64;

/// The name of a database beside `live`. If it would be too long, a hash replaces the end of `live`: two long
/// names may begin alike.
fn beside(live: &str, suffix: &str) -> String {
    if live.chars().count() + suffix.len() <= DATABASE_NAME_MAX {
        return format!("{live}{suffix}");
    }
    let hash = format!("_{}", projection::short_hash(live));
    let kept: String = live.chars().take(DATABASE_NAME_MAX - suffix.len() - hash.len()).collect();
    format!("{kept}{hash}{suffix}")
}

/// The identity of the tables in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InService {
    /// The number of times that a rebuild has put other tables in service.
    pub generation: u32,
    /// SHA-256 of the files whose handlers are applied to them, if known.
    pub definition: Option<String>,
    /// SHA-256 of the `tables.sql` from which they were created.
    pub tables_hash: String,
    /// See [`crate::Checkpoint::epoch`]; `None` for a projection without a checkpoint.
    pub epoch: Option<Uuid>,
    /// See [`crate::ReadModel::compared_until`].
    pub compared_until: Option<Position>,
}

type ServiceRow = (u32, Option<String>, String, bool, Option<u64>);

/// The result of an attempt to swap tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The tables are swapped.
    Done,
    /// A reader held a table, or the server took too long. The swap may still happen until its ticket is
    /// void.
    Held,
}

/// An empty table that one attempt to swap moves together with the other tables.
///
/// The statement of a swap can reach the server late, or continue there after its connection has ended.
/// Dropping the ticket's table voids it: a swap that has not happened by then fails.
pub struct Ticket(String);

/// The names of a projection's tables and of its bookkeeping.
pub fn all_tables(projection: &Projection, ledger: &Ledger) -> Vec<String> {
    let own = projection.tables.iter().map(|table| table.name.clone());
    own.chain(ledger.tables().map(str::to_owned)).collect()
}

impl Session {
    /// Creates a database if it does not exist.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn make_database(&mut self, database: &str) -> Result<(), Error> {
        let create = format!("CREATE DATABASE IF NOT EXISTS {}", quoted(database));
        self.plain(create).await.map_err(|error| match error {
            Error::Statement { source, .. }
                if number(&source) == Some(ER_DBACCESS_DENIED_ERROR) =>
            {
                Error::NoDatabase { database: database.to_owned() }
            }
            other => other,
        })
    }

    pub(crate) async fn plain(&mut self, sql: String) -> Result<(), Error> {
        let run = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection);
        match timeout(LONG_LIMIT, run).await {
            Ok(done) => done.map(drop).map_err(|source| Error::of("changing tables", source)),
            Err(_elapsed) => {
                Err(Error::Timeout { operation: "changing tables", limit: LONG_LIMIT })
            }
        }
    }

    /// Drops the tables that exist in a database, with one statement: tables with foreign keys between them can
    /// only be dropped together.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn drop_tables(&mut self, database: &str, tables: &[String]) -> Result<(), Error> {
        let name = |table: &String| format!("{}.{}", quoted(database), quoted(table));
        let names: Vec<String> = tables.iter().map(name).collect();
        self.plain(format!("DROP TABLE IF EXISTS {}", names.join(", "))).await
    }

    /// The number of the given tables that a database has.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn count_tables(
        &mut self,
        database: &str,
        tables: &[impl AsRef<str>],
    ) -> Result<usize, Error> {
        let read = query_scalar(
            "SELECT CAST(table_name AS CHAR) FROM information_schema.tables WHERE table_schema = ?",
        )
        .bind(database)
        .fetch_all(&mut self.connection);
        let found: Vec<String> = within("listing tables", read).await?;
        Ok(tables.iter().filter(|table| found.iter().any(|it| it == table.as_ref())).count())
    }

    /// The identity of the tables in service.
    ///
    /// # Errors
    ///
    /// When MySQL fails, or [`Error::SwapNotRecorded`].
    pub async fn in_service(&mut self, ledger: &Ledger) -> Result<InService, Error> {
        let read = query_as(
            "SELECT generation, definition_hash, tables_hash, swapping, compared_until
             FROM projector_projections WHERE name = ?",
        )
        .bind(ledger.projection())
        .fetch_optional(&mut self.connection);
        let found: Option<ServiceRow> = within("reading a projection", read).await?;
        let (generation, definition, tables_hash, swapping, compared) =
            found.ok_or_else(|| ledger.not_migrated())?;
        let epoch = self.checkpoint(ledger).await?.map(|checkpoint| checkpoint.epoch);
        if swapping {
            self.require_recorded_swap(ledger).await?;
        }
        let compared_until = compared.map(|until| ledger.progress.position(until)).transpose()?;
        Ok(InService { generation, definition, tables_hash, epoch, compared_until })
    }

    /// Refuses if a rebuild was interrupted between its swap and recording it: the files from which the
    /// tables in service were built are unknown then.
    async fn require_recorded_swap(&mut self, ledger: &Ledger) -> Result<(), Error> {
        let databases = Databases::beside(&self.database().await?);
        let from = match self.job(ledger).await?.map(|job| job.state) {
            Some(JobState::CuttingOver) => databases.new,
            Some(JobState::RollingBack) => databases.old,
            _ => return Ok(()),
        };
        // Earlier releases swap without the table of migrations.
        let swapped = [ledger.streams_table(), ledger.checkpoint_table()];
        if self.count_tables(&from, &swapped).await? > 0 {
            return Ok(());
        }
        Err(Error::SwapNotRecorded { projection: ledger.projection().to_owned() })
    }

    /// The database that the session uses.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn database(&mut self) -> Result<String, Error> {
        let read = query_scalar("SELECT DATABASE()").fetch_one(&mut self.connection);
        within("reading the current database", read).await
    }

    /// Creates a ticket for one attempt to swap the tables in `database`.
    ///
    /// The session must hold [`crate::Lock::Rebuild`]. The next holder of that lock voids the ticket.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn issue_ticket(&mut self, ledger: &Ledger, database: &str) -> Result<Ticket, Error> {
        let ticket = Ticket(format!("projector_ticket_{}", Uuid::new_v4().simple()));
        let (name, projection) = (&ticket.0, ledger.projection());
        let database = quoted(database);
        self.plain(format!("CREATE TABLE {database}.`{name}` (id INT) COMMENT = '{projection}'"))
            .await?;
        Ok(ticket)
    }

    /// Voids all tickets of a projection. Waits for a swap that is running; afterwards, no earlier attempt
    /// can succeed.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn void_tickets(
        &mut self,
        ledger: &Ledger,
        databases: &Databases,
    ) -> Result<(), Error> {
        let read = query_as(
            "SELECT CAST(table_schema AS CHAR), CAST(table_name AS CHAR) FROM information_schema.tables
             WHERE table_schema IN (?, ?) AND table_name LIKE 'projector\\_ticket\\_%' AND table_comment = ?",
        )
        .bind(&databases.new)
        .bind(&databases.old)
        .bind(ledger.projection())
        .fetch_all(&mut self.connection);
        let tickets: Vec<(String, String)> = within("listing tickets", read).await?;
        for (database, ticket) in tickets {
            self.drop_tables(&database, &[ticket]).await?;
        }
        Ok(())
    }

    /// Moves tables from the database `from` to `to`, and those in `to` to `away`, in one atomic statement.
    ///
    /// The caller must hold the gate exclusively. The statement runs on its own connection. If a reader
    /// holds a table for too long, that connection is killed, because all later readers wait behind the
    /// swap.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn swap(
        &mut self,
        options: &Options,
        tables: &[String],
        ticket: &Ticket,
        [from, to, away]: [&str; 3],
    ) -> Result<Swap, Error> {
        let pair = |source: &str, target: &str, table: &String| {
            let (source, target, table) = (quoted(source), quoted(target), quoted(table));
            format!("{source}.{table} TO {target}.{table}")
        };
        let mut pairs = vec![pair(from, away, &ticket.0)];
        pairs.extend(tables.iter().map(|table| pair(to, away, table)));
        pairs.extend(tables.iter().map(|table| pair(from, to, table)));
        let sql = format!("RENAME TABLE {}", pairs.join(", "));
        let mut other = Self::connect(options).await?;
        let limit = query("SET SESSION lock_wait_timeout = 1").execute(&mut other.connection);
        within("limiting the wait for locks", limit).await?;
        let id = query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut other.connection);
        let id: u64 = within("reading the connection id", id).await?;
        let rename = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut other.connection);
        let renamed = timeout(SWAP_LIMIT, rename).await;
        match renamed {
            Ok(Ok(_done)) => {
                other.close().await;
                Ok(Swap::Done)
            }
            Ok(Err(source))
                if matches!(
                    number(&source),
                    Some(ER_LOCK_WAIT_TIMEOUT | ER_LOCK_DEADLOCK | ER_QUERY_INTERRUPTED)
                ) =>
            {
                Ok(Swap::Held)
            }
            Ok(Err(source)) => Err(Error::of("swapping tables", source)),
            Err(_elapsed) => {
                self.kill(id, &mut other.connection).await;
                Ok(Swap::Held)
            }
        }
    }

    /// Kills another connection together with its statement, which must not run later.
    async fn kill(&mut self, id: u64, other: &mut MySqlConnection) {
        let kill = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}"))).execute(&mut self.connection);
        // The connection may have ended by itself. The caller checks whether the tables are swapped.
        drop(within("ending a swap", kill).await);
        drop(timeout(Duration::from_secs(1), other.ping()).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_fit_and_differ() {
        let Databases { new, old, verify, .. } = Databases::beside("shop");
        assert_eq!([new, old, verify], ["shop__new", "shop__old", "shop__verify"]);
        for length in 50..=64 {
            let (one, other) = (format!("{}a", "é".repeat(length - 1)), "é".repeat(length));
            let names = |live: &str| {
                let Databases { new, old, verify, .. } = Databases::beside(live);
                [new, old, verify]
            };
            let all: std::collections::BTreeSet<String> =
                [names(&one), names(&other)].into_iter().flatten().collect();
            assert_eq!(all.len(), 6, "{all:?}");
            assert!(all.iter().all(|name| name.chars().count() <= 64), "{all:?}");
        }
    }
}
