//! A projection's tables in another database, and how they take the place of the live ones.
//!
//! The shadow has the same table names, so that everything that applies events works there unchanged.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, query, query_as, query_scalar};
use tokio::time::timeout;
use uuid::Uuid;

use crate::error::number;
use crate::error_codes::{
    ER_DBACCESS_DENIED_ERROR, ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, ER_QUERY_INTERRUPTED,
};
use crate::session::within;
use crate::{Error, JobState, Ledger, Options, Session};
use projection::Projection;

/// How long a swap may wait for readers of the tables; others wait behind it meanwhile.
const SWAP_LIMIT: Duration = Duration::from_millis(300);
/// Dropping large tables takes time.
pub(crate) const DROP_LIMIT: Duration = Duration::from_mins(5);

/// The databases of a rebuild, beside that of the read models.
#[derive(Debug, Clone)]
pub struct Databases {
    /// That of the read models.
    pub live: String,
    /// Where new tables are built.
    pub new: String,
    /// Where the previous tables are kept.
    pub old: String,
    /// Where tables are built to be compared.
    pub verify: String,
}

impl Databases {
    /// The databases beside that of the read models.
    pub fn beside(live: &str) -> Self {
        Self {
            live: live.to_owned(),
            new: format!("{live}__new"),
            old: format!("{live}__old"),
            verify: format!("{live}__verify"),
        }
    }
}

/// The tables of a projection that are in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InService {
    /// Grows with each rebuild.
    pub generation: u32,
    /// SHA-256 of the files from which they were built, if that is known.
    pub built_from: Option<String>,
    /// Tells them from all other tables, once events were applied.
    pub epoch: Option<Uuid>,
}

/// What became of an attempt to swap tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// They are swapped.
    Done,
    /// A reader held one of them, or the server took too long: it may still happen, with its ticket.
    Held,
}

/// What one attempt to swap tables needs: an empty table, which the swap takes along.
///
/// A swap can reach the server late, or go on there after its connection was ended. Where its ticket is
/// void, it has happened already, or it never will.
pub struct Ticket(String);

/// The tables of a projection and its bookkeeping.
pub fn all_tables(projection: &Projection, ledger: &Ledger) -> Vec<String> {
    let own = projection.tables.iter().map(|table| table.name.clone());
    own.chain(ledger.tables().map(str::to_owned)).collect()
}

impl Session {
    /// Makes a database, unless it is there.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn make_database(&mut self, database: &str) -> Result<(), Error> {
        let create = format!("CREATE DATABASE IF NOT EXISTS `{database}`");
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
        match timeout(DROP_LIMIT, run).await {
            Ok(done) => done.map(drop).map_err(|source| Error::of("changing tables", source)),
            Err(_elapsed) => {
                Err(Error::Timeout { operation: "changing tables", limit: DROP_LIMIT })
            }
        }
    }

    /// Drops tables of a database that are there.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn drop_tables(&mut self, database: &str, tables: &[String]) -> Result<(), Error> {
        for table in tables {
            self.plain(format!("DROP TABLE IF EXISTS `{database}`.`{table}`")).await?;
        }
        Ok(())
    }

    /// How many of some tables a database has.
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

    /// Which tables are in service, and from which files they were built.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn in_service(&mut self, ledger: &Ledger) -> Result<InService, Error> {
        let read = query_as(
            "SELECT generation, definition_hash, swapping FROM projector_projections WHERE name = ?",
        )
        .bind(ledger.projection())
        .fetch_optional(&mut self.connection);
        let found: Option<(u32, Option<String>, bool)> =
            within("reading a projection", read).await?;
        let (generation, built_from, swapping) = found.ok_or_else(|| ledger.not_migrated())?;
        let epoch = self.checkpoint(ledger).await?.map(|checkpoint| checkpoint.epoch);
        if swapping {
            self.require_noted(ledger).await?;
        }
        Ok(InService { generation, built_from, epoch })
    }

    /// A rebuild may have ended between its swap and noting it. Then nobody knows from which files the
    /// tables in service were built.
    async fn require_noted(&mut self, ledger: &Ledger) -> Result<(), Error> {
        let databases = Databases::beside(&self.database().await?);
        let from = match self.job(ledger).await?.map(|job| job.state) {
            Some(JobState::CuttingOver) => databases.new,
            Some(JobState::RollingBack) => databases.old,
            _ => return Ok(()),
        };
        if self.count_tables(&from, &ledger.tables()).await? > 0 {
            return Ok(());
        }
        Err(Error::SwapNotNoted { projection: ledger.projection().to_owned() })
    }

    /// The database that the session uses.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn database(&mut self) -> Result<String, Error> {
        let read = query_scalar("SELECT DATABASE()").fetch_one(&mut self.connection);
        within("asking for the database", read).await
    }

    /// A ticket for one attempt to swap tables that lie in `database`.
    ///
    /// Only on the session that owns the rebuild: whoever owns it next voids it.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn issue_ticket(&mut self, ledger: &Ledger, database: &str) -> Result<Ticket, Error> {
        let ticket = Ticket(format!("projector_ticket_{}", Uuid::new_v4().simple()));
        let (name, projection) = (&ticket.0, ledger.projection());
        self.plain(format!("CREATE TABLE `{database}`.`{name}` (id INT) COMMENT = '{projection}'"))
            .await?;
        Ok(ticket)
    }

    /// Makes sure that no swap of a projection's tables is still to come; waits for one under way.
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

    /// Puts tables from one database into another, and those there into a third, all at once.
    ///
    /// Only while the gate is held. It runs on a connection of its own, which is killed when a reader
    /// holds a table for too long: behind a waiting swap, everybody else waits too.
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
            format!("`{source}`.`{table}` TO `{target}`.`{table}`")
        };
        let mut pairs = vec![pair(from, away, &ticket.0)];
        pairs.extend(tables.iter().map(|table| pair(to, away, table)));
        pairs.extend(tables.iter().map(|table| pair(from, to, table)));
        let sql = format!("RENAME TABLE {}", pairs.join(", "));
        let mut other = Self::connect(options).await?;
        let limit = query("SET SESSION lock_wait_timeout = 1").execute(&mut other.connection);
        within("limiting a wait", limit).await?;
        let id = query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut other.connection);
        let id: u64 = within("asking for the connection", id).await?;
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

    /// Ends a statement of another connection, and then the connection: it must not go on later.
    async fn kill(&mut self, id: u64, other: &mut MySqlConnection) {
        let kill = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}"))).execute(&mut self.connection);
        // It may have ended by itself; whether the tables are swapped is looked at anew.
        drop(within("ending a swap", kill).await);
        drop(timeout(Duration::from_secs(1), other.ping()).await);
    }
}
