//! The transaction of one batch, which contains its effects and its bookkeeping.

use std::time::Instant;

use domain_events::StreamId;
use serde_json::Value as Json;
use sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Executor, MySql, SqlStr, Transaction};
use tokio::time::timeout;
use uuid::Uuid;

use crate::batching::{Row, SetForm, quoted};
use crate::session::{STATEMENT_LIMIT, within};
use crate::{Error, Gate, Ledger, LockMode, ParkedStream, Session, Skips};
use projection::plan::{Heads, Step};
use projection::{Statement, Value};

/// An open transaction. When it is dropped, the server rolls it back later; prefer [`Batch::rollback`].
pub struct Batch<'s> {
    transaction: Transaction<'s, MySql>,
    ledger: &'s Ledger,
    used: &'s mut Instant,
}

/// Proof that a batch was committed. It is required to acknowledge deliveries.
#[derive(Debug)]
pub struct Committed(());

impl Session {
    /// Begins a batch. Its first statement locks the gate: while a session holds the gate exclusively, no
    /// other batch holds a lock on a table of the projection.
    pub(crate) async fn begin<'s>(
        &'s mut self,
        ledger: &'s Ledger,
        mode: LockMode,
    ) -> Result<(Batch<'s>, Gate), Error> {
        let Self { connection, used, .. } = self;
        let transaction = within("opening a transaction", connection.begin()).await?;
        let mut batch = Batch { transaction, ledger, used };
        let gate = ledger.pass(&mut batch.transaction, mode).await?;
        Ok((batch, gate))
    }

    /// Closes the gate of a projection: no other batch begins until the returned one ends. The tables in
    /// service are not checked, so the batch may not run handlers.
    ///
    /// # Errors
    ///
    /// When MySQL fails, or a running batch does not end in time.
    pub async fn close_gate<'s>(&'s mut self, ledger: &'s Ledger) -> Result<Batch<'s>, Error> {
        Ok(self.begin(ledger, LockMode::Exclusive).await?.0)
    }
}

impl Batch<'_> {
    /// Locks streams, which must be sorted, and reads where each stands.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn lock(&mut self, streams: &[&StreamId]) -> Result<Heads, Error> {
        self.ledger.lock(&mut self.transaction, streams).await
    }

    /// Runs a statement of a handler.
    pub(crate) async fn execute(
        &mut self,
        statement: &Statement,
        values: &[Value],
    ) -> Result<(), Error> {
        let query = values.iter().fold(sqlx::query(typed(&statement.sql, values)), bind);
        let found = self.run(statement, query).await?;
        match statement.rows {
            Some(wanted) if found != wanted => {
                Err(Error::unexpected_rows(statement, found, wanted))
            }
            _ => Ok(()),
        }
    }

    /// Runs a statement once for many events. If `expects_rows`, it must find as many rows as there are
    /// values.
    pub(crate) async fn execute_set(
        &mut self,
        statement: &Statement,
        form: &SetForm,
        rows: Vec<Row>,
        expects_rows: bool,
    ) -> Result<(), Error> {
        let wanted = rows.len() as u64;
        let rows = Json::Array(rows.into_iter().map(Json::Array).collect()).to_string();
        let query = sqlx::query(form.sql()).bind(rows);
        let found = self.run(statement, query).await?;
        if expects_rows && found != wanted {
            return Err(Error::unexpected_rows(statement, found, wanted));
        }
        Ok(())
    }

    /// Runs a statement of a projection in Rust. Returns the number of rows that it found.
    pub(crate) async fn execute_plain(
        &mut self,
        sql: &'static str,
        values: &[Value],
    ) -> Result<u64, Error> {
        let query = values.iter().fold(sqlx::query(typed(sql, values)), bind);
        match timeout(STATEMENT_LIMIT, query.execute(&mut *self.transaction)).await {
            Ok(done) => done.map(|done| done.rows_affected()).map_err(Error::of_code),
            Err(_elapsed) => Err(timed_out()),
        }
    }

    /// Reads rows for a projection in Rust.
    pub(crate) async fn fetch_plain(
        &mut self,
        sql: &'static str,
        values: &[Value],
    ) -> Result<Vec<MySqlRow>, Error> {
        let query = values.iter().fold(sqlx::query(typed(sql, values)), bind);
        match timeout(STATEMENT_LIMIT, query.fetch_all(&mut *self.transaction)).await {
            Ok(rows) => rows.map_err(Error::of_code),
            Err(_elapsed) => Err(timed_out()),
        }
    }

    /// Returns the number of rows that the statement found. The driver sets `CLIENT_FOUND_ROWS`, so MySQL
    /// also counts rows that already had the new values.
    async fn run(&mut self, statement: &Statement, query: Bound<'_>) -> Result<u64, Error> {
        match timeout(STATEMENT_LIMIT, query.execute(&mut *self.transaction)).await {
            Ok(Ok(done)) => Ok(done.rows_affected()),
            Ok(Err(source)) => Err(Error::of_handler(statement, source)),
            Err(_elapsed) => Err(timed_out()),
        }
    }

    /// The bookkeeping of the projection.
    pub(crate) fn ledger(&self) -> &Ledger {
        self.ledger
    }

    /// The connection of the transaction.
    pub(crate) fn connection(&mut self) -> &mut MySqlConnection {
        &mut self.transaction
    }

    /// Sets a savepoint for [`Batch::undo`].
    pub(crate) async fn save(&mut self) -> Result<(), Error> {
        self.plain("setting a savepoint", "SAVEPOINT event").await
    }

    /// Rolls back to the savepoint of [`Batch::save`].
    pub(crate) async fn undo(&mut self) -> Result<(), Error> {
        self.plain("undoing an event", "ROLLBACK TO SAVEPOINT event").await
    }

    async fn plain(&mut self, operation: &'static str, sql: &'static str) -> Result<(), Error> {
        let sql = SqlStr::from_static(sql);
        within(operation, self.transaction.execute(sqlx::raw_sql(sql))).await.map(drop)
    }

    /// Updates the bookkeeping of streams.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn advance(&mut self, steps: &[Step<'_>]) -> Result<(), Error> {
        if steps.is_empty() {
            return Ok(());
        }
        self.ledger.advance(&mut self.transaction, steps).await
    }

    /// Records parked streams and their reasons.
    pub(crate) async fn park(&mut self, streams: &[ParkedStream]) -> Result<(), Error> {
        for stream in streams {
            self.ledger.park(&mut self.transaction, stream).await?;
        }
        Ok(())
    }

    /// The number of streams that any instance has parked within the last `seconds`.
    pub(crate) async fn recently_parked(&mut self, seconds: u64) -> Result<u64, Error> {
        self.ledger.recently_parked(&mut self.transaction, seconds).await
    }

    /// The epoch of the tables in service. It is read only after the gate is passed: reading it locks a
    /// table, and a batch that waits for the gate must not block the swap of that table.
    pub(crate) async fn epoch(&mut self) -> Result<Option<Uuid>, Error> {
        self.ledger.epoch(&mut self.transaction).await
    }

    /// Deletes the rows of a table that belong to a stream.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn delete_rows(
        &mut self,
        table: &str,
        column: &str,
        stream_id: &StreamId,
    ) -> Result<(), Error> {
        let sql = format!("DELETE FROM {} WHERE {} = ?", quoted(table), quoted(column));
        let delete = sqlx::query(AssertSqlSafe(sql))
            .bind(stream_id.as_str())
            .execute(&mut *self.transaction);
        within("deleting the rows of a stream", delete).await.map(drop)
    }

    /// Deletes the bookkeeping of a stream, so that it starts again at its first version.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn forget(&mut self, stream_id: &StreamId) -> Result<(), Error> {
        self.ledger.forget(&mut self.transaction, stream_id).await
    }

    /// Clears the parked state of a stream.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn unpark(&mut self, stream_id: &StreamId) -> Result<(), Error> {
        self.ledger.unpark(&mut self.transaction, stream_id).await
    }

    /// Records that a person leaves out the event that stopped a stream.
    ///
    /// # Errors
    ///
    /// When MySQL fails; [`Error::SkipDuringRebuild`], because the new tables may hold its effect already.
    pub async fn record_skip(
        &mut self,
        stream: &ParkedStream,
        reason: &str,
        actor: &str,
    ) -> Result<(), Error> {
        self.ledger.record_skip(&mut self.transaction, stream, reason, actor).await
    }

    /// The events that a person has left out, now.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn skips(&mut self) -> Result<Skips, Error> {
        self.ledger.skips(&mut self.transaction).await
    }

    /// Records an operator's decision about a stream.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn audit(
        &mut self,
        stream: &ParkedStream,
        action: &str,
        reason: &str,
        actor: &str,
    ) -> Result<(), Error> {
        let stream = Some(stream);
        self.ledger.audit(&mut self.transaction, stream, action, reason, actor).await
    }

    /// Commits. After an error, the batch may or may not be committed. Either way, the caller can safely
    /// apply the same events again: the bookkeeping recognises duplicates.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn commit(self) -> Result<Committed, Error> {
        within("committing a batch", self.transaction.commit()).await?;
        *self.used = Instant::now();
        Ok(Committed(()))
    }

    /// Rolls the transaction back. After an error, the session must be dropped.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn rollback(self) -> Result<(), Error> {
        within("rolling back a batch", self.transaction.rollback()).await?;
        *self.used = Instant::now();
        Ok(())
    }
}

/// Appends a comment with the types of the values, so that each combination of types is a statement of its
/// own.
///
/// MySQL fixes the parameter types of a prepared statement at its first execution. After an integer for a
/// JSON column, every text for that column fails on the same connection (error 3144).
fn typed(sql: &str, values: &[Value]) -> AssertSqlSafe<String> {
    let types: String = values.iter().map(Value::letter).collect();
    AssertSqlSafe(format!("{sql} /* {types} */"))
}

fn timed_out() -> Error {
    Error::Timeout { operation: "applying an event", limit: STATEMENT_LIMIT }
}

type Bound<'q> = Query<'q, MySql, MySqlArguments>;

fn bind<'q>(query: Bound<'q>, value: &Value) -> Bound<'q> {
    match value {
        Value::Null => query.bind(None::<String>),
        // As a bool, sqlx sends an unsigned number, and MySQL refuses to add that to a negative one (1690).
        Value::Boolean(flag) => query.bind(i64::from(*flag)),
        Value::Integer(number) => query.bind(*number),
        Value::Unsigned(number) => query.bind(*number),
        Value::Decimal(number) => query.bind(number.clone()),
        Value::Text(text) | Value::Json(text) => query.bind(text.clone()),
        Value::Time(time) => query.bind(*time),
    }
}
