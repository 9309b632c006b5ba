//! The transaction of one batch: effects and bookkeeping together.

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
use crate::{Error, Gate, Ledger, LockMode, ParkedStream, Session};
use projection::plan::{Heads, Step};
use projection::{Projection, Statement, Value};

/// An open transaction. Dropping it leaves the rollback to the server; prefer [`Batch::rollback`].
pub struct Batch<'s> {
    transaction: Transaction<'s, MySql>,
    ledger: &'s Ledger,
    used: &'s mut Instant,
}

/// Proof that a batch was committed. Only with it may deliveries be acknowledged.
#[derive(Debug)]
pub struct Committed(());

impl Session {
    /// Begins a batch. Its first statement locks the gate, so that a session that holds the gate
    /// exclusively knows that no batch has touched a table.
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

    /// Closes the gate of a projection, whatever its tables are: no batch runs until this one ends.
    ///
    /// # Errors
    ///
    /// When MySQL fails, or a batch does not end in time.
    pub async fn close_gate<'s>(&'s mut self, ledger: &'s Ledger) -> Result<Batch<'s>, Error> {
        Ok(self.begin(ledger, LockMode::Exclusive).await?.0)
    }
}

impl Batch<'_> {
    /// Locks streams, which must be sorted, and reads where they stand.
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

    /// Runs a statement for many events at once; if `finds_all`, each row must find one.
    pub(crate) async fn execute_set(
        &mut self,
        statement: &Statement,
        form: &SetForm,
        rows: Vec<Row>,
        finds_all: bool,
    ) -> Result<(), Error> {
        let wanted = rows.len() as u64;
        let rows = Json::Array(rows.into_iter().map(Json::Array).collect()).to_string();
        let query = sqlx::query(form.sql()).bind(rows);
        let found = self.run(statement, query).await?;
        if finds_all && found != wanted {
            return Err(Error::unexpected_rows(statement, found, wanted));
        }
        Ok(())
    }

    /// Runs a statement of a projection in Rust, and gives how many rows it found.
    pub(crate) async fn execute_plain(
        &mut self,
        sql: &'static str,
        values: &[Value],
    ) -> Result<u64, Error> {
        let query = values.iter().fold(sqlx::query(typed(sql, values)), bind);
        match timeout(STATEMENT_LIMIT, query.execute(&mut *self.transaction)).await {
            Ok(done) => done.map(|done| done.rows_affected()).map_err(Error::of_code),
            Err(_elapsed) => Err(late()),
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
            Err(_elapsed) => Err(late()),
        }
    }

    /// Gives the rows that were found. The driver asks MySQL to count those that changed nothing too.
    async fn run(&mut self, statement: &Statement, query: Bound<'_>) -> Result<u64, Error> {
        match timeout(STATEMENT_LIMIT, query.execute(&mut *self.transaction)).await {
            Ok(Ok(done)) => Ok(done.rows_affected()),
            Ok(Err(source)) => Err(Error::of_handler(statement, source)),
            Err(_elapsed) => Err(late()),
        }
    }

    /// The connection of the transaction.
    pub(crate) fn connection(&mut self) -> &mut MySqlConnection {
        &mut self.transaction
    }

    /// From here on can be undone.
    pub(crate) async fn save(&mut self) -> Result<(), Error> {
        self.plain("marking a place in a batch", "SAVEPOINT event").await
    }

    /// Undoes what was done since [`Batch::save`].
    pub(crate) async fn undo(&mut self) -> Result<(), Error> {
        self.plain("undoing an event", "ROLLBACK TO SAVEPOINT event").await
    }

    async fn plain(&mut self, operation: &'static str, sql: &'static str) -> Result<(), Error> {
        let sql = SqlStr::from_static(sql);
        within(operation, self.transaction.execute(sqlx::raw_sql(sql))).await.map(drop)
    }

    /// Moves the bookkeeping on.
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

    /// Records why streams cannot go on.
    pub(crate) async fn park(&mut self, streams: &[ParkedStream]) -> Result<(), Error> {
        for stream in streams {
            self.ledger.park(&mut self.transaction, stream).await?;
        }
        Ok(())
    }

    /// How many streams were parked within the last seconds, by any instance.
    pub(crate) async fn recently_parked(&mut self, seconds: u64) -> Result<u64, Error> {
        self.ledger.recently_parked(&mut self.transaction, seconds).await
    }

    /// Which tables are in service. Not before the gate: who waits for that must not hold a table that is
    /// to be swapped.
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

    /// Forgets where a stream stands, so that it begins anew.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn forget(&mut self, stream_id: &StreamId) -> Result<(), Error> {
        self.ledger.forget(&mut self.transaction, stream_id).await
    }

    /// Lets a parked stream go on, in this transaction.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn unpark(&mut self, stream_id: &StreamId) -> Result<(), Error> {
        self.ledger.unpark(&mut self.transaction, stream_id).await
    }

    /// Notes, while it has the gate alone, that other tables are in service: instances look at them
    /// again.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn next_generation(&mut self, projection: &Projection) -> Result<(), Error> {
        let note = sqlx::query(
            "UPDATE projector_projections
             SET generation = generation + 1, definition_hash = ?, tables_hash = ?, swapping = FALSE
             WHERE name = ?",
        )
        .bind(&projection.definition_hash)
        .bind(&projection.tables_hash)
        .bind(&projection.name)
        .execute(&mut *self.transaction);
        within("noting the generation", note).await.map(drop)
    }

    /// Commits. After an error it is not known whether the server did; applying the same events
    /// again is harmless either way.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn commit(self) -> Result<Committed, Error> {
        within("committing a batch", self.transaction.commit()).await?;
        *self.used = Instant::now();
        Ok(Committed(()))
    }

    /// Undoes everything. After an error the session must be dropped.
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

/// The statement, marked with the types of its values, so that each combination is prepared for itself.
///
/// MySQL settles the types of a prepared statement's parameters when it is executed first. After an
/// integer for a JSON column, every text for it fails on that connection (error 3144).
fn typed(sql: &str, values: &[Value]) -> AssertSqlSafe<String> {
    let types: String = values.iter().map(Value::letter).collect();
    AssertSqlSafe(format!("{sql} /* {types} */"))
}

fn late() -> Error {
    Error::Timeout { operation: "applying an event", limit: STATEMENT_LIMIT }
}

type Bound<'q> = Query<'q, MySql, MySqlArguments>;

fn bind<'q>(query: Bound<'q>, value: &Value) -> Bound<'q> {
    match value {
        Value::Null => query.bind(None::<String>),
        Value::Boolean(flag) => query.bind(*flag),
        Value::Integer(number) => query.bind(*number),
        Value::Unsigned(number) => query.bind(*number),
        Value::Decimal(number) => query.bind(number.clone()),
        Value::Text(text) | Value::Json(text) => query.bind(text.clone()),
        Value::Time(time) => query.bind(*time),
    }
}
