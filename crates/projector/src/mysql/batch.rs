//! The transaction of one batch: effects and bookkeeping together.

use std::collections::HashMap;
use std::time::Instant;

use domain_events::StreamId;
use sqlx::mysql::MySqlArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, MySql, Transaction};
use tokio::time::timeout;

use super::session::{STATEMENT_LIMIT, within};
use super::{Error, Ledger, Session};
use crate::projection::{Statement, Value};
use crate::sequence::{Head, Move};

/// An open transaction. Dropping it leaves the rollback to the server; prefer [`Batch::rollback`].
pub(crate) struct Batch<'s> {
    transaction: Transaction<'s, MySql>,
    ledger: &'s Ledger,
    used: &'s mut Instant,
}

/// Proof that a batch was committed. Only with it may deliveries be acknowledged.
#[derive(Debug)]
pub(crate) struct Committed(());

impl Session {
    /// Begins a batch.
    pub(crate) async fn begin<'s>(&'s mut self, ledger: &'s Ledger) -> Result<Batch<'s>, Error> {
        let Self { connection, used } = self;
        let transaction = within("opening a transaction", connection.begin()).await?;
        Ok(Batch { transaction, ledger, used })
    }
}

impl Batch<'_> {
    /// Locks streams, which must be sorted, and reads where they stand.
    pub(crate) async fn lock(
        &mut self,
        streams: &[&StreamId],
    ) -> Result<HashMap<StreamId, Head>, Error> {
        self.ledger.lock(&mut self.transaction, streams).await
    }

    /// Runs a statement of a handler.
    pub(crate) async fn execute(
        &mut self,
        statement: &Statement,
        values: Vec<Value>,
    ) -> Result<(), Error> {
        let sql = AssertSqlSafe(std::sync::Arc::clone(&statement.sql));
        let query = values.into_iter().fold(sqlx::query(sql), bind);
        match timeout(STATEMENT_LIMIT, query.execute(&mut *self.transaction)).await {
            Ok(Ok(_done)) => Ok(()),
            Ok(Err(source)) => Err(Error::of_handler(statement, source)),
            Err(_elapsed) => {
                Err(Error::Timeout { operation: "applying an event", limit: STATEMENT_LIMIT })
            }
        }
    }

    /// Moves the bookkeeping on.
    pub(crate) async fn advance(&mut self, moves: &[Move<'_>]) -> Result<(), Error> {
        if moves.is_empty() {
            Ok(())
        } else {
            self.ledger.advance(&mut self.transaction, moves).await
        }
    }

    /// Commits. After an error it is not known whether the server did; applying the same events
    /// again is harmless either way.
    pub(crate) async fn commit(self) -> Result<Committed, Error> {
        within("committing a batch", self.transaction.commit()).await?;
        *self.used = Instant::now();
        Ok(Committed(()))
    }

    /// Undoes everything. After an error the session must be dropped.
    pub(crate) async fn rollback(self) -> Result<(), Error> {
        within("rolling back a batch", self.transaction.rollback()).await?;
        *self.used = Instant::now();
        Ok(())
    }
}

type Bound<'q> = Query<'q, MySql, MySqlArguments>;

fn bind(query: Bound<'_>, value: Value) -> Bound<'_> {
    match value {
        Value::Null => query.bind(None::<String>),
        Value::Boolean(flag) => query.bind(flag),
        Value::Integer(number) => query.bind(number),
        Value::Unsigned(number) => query.bind(number),
        Value::Decimal(number) => query.bind(number),
        Value::Text(text) | Value::Json(text) => query.bind(text),
        Value::Time(time) => query.bind(time),
    }
}
