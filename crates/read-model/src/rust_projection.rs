//! Projections in Rust, for logic that SQL cannot express.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use domain_events::StoredEvent;
use futures_util::future::BoxFuture;
use sqlx::mysql::MySqlRow;

use projection::Value;

use crate::{Batch, Error, Refusal};

/// The handler of all events of a projection, in Rust.
///
/// The directory of the projection has `projection.toml` and `tables.sql`, and no handlers. Exactly-once
/// effects, healing and parking work as with SQL. Its events run one by one, and its batches never run in
/// parallel.
pub trait RustProjection: Send + Sync {
    /// Applies one event, in the transaction of its batch.
    ///
    /// The result must depend only on the event and the projection's own tables, so that a rebuild gives
    /// the same read model.
    ///
    /// # Errors
    ///
    /// [`CodeError::Refused`] parks the stream of the event. Implementations must return the errors of
    /// [`Tables`].
    fn apply<'a>(
        &'a self,
        event: &'a StoredEvent,
        tables: &'a mut Tables<'_>,
    ) -> BoxFuture<'a, Result<(), CodeError>>;
}

impl fmt::Debug for dyn RustProjection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RustProjection")
    }
}

/// The projections in Rust, by the names of their directories.
#[derive(Clone, Default)]
pub struct Registry(HashMap<String, Arc<dyn RustProjection>>);

impl Registry {
    /// Adds the projection with this name.
    #[must_use]
    pub fn with(mut self, name: &str, projection: impl RustProjection + 'static) -> Self {
        self.0.insert(name.to_owned(), Arc::new(projection));
        self
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn RustProjection>> {
        self.0.get(name).map(Arc::clone)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The projection's tables, within the transaction of a batch.
pub struct Tables<'t> {
    batch: &'t mut dyn Run,
}

/// The statements of a [`Batch`], without its lifetime parameter.
trait Run: Send {
    fn execute<'a>(
        &'a mut self,
        sql: &'static str,
        values: &'a [Value],
    ) -> BoxFuture<'a, Result<u64, Error>>;

    fn fetch<'a>(
        &'a mut self,
        sql: &'static str,
        values: &'a [Value],
    ) -> BoxFuture<'a, Result<Vec<MySqlRow>, Error>>;
}

impl Run for Batch<'_> {
    fn execute<'a>(
        &'a mut self,
        sql: &'static str,
        values: &'a [Value],
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(self.execute_plain(sql, values))
    }

    fn fetch<'a>(
        &'a mut self,
        sql: &'static str,
        values: &'a [Value],
    ) -> BoxFuture<'a, Result<Vec<MySqlRow>, Error>> {
        Box::pin(self.fetch_plain(sql, values))
    }
}

impl<'t> Tables<'t> {
    pub(crate) fn of(batch: &'t mut Batch<'_>) -> Self {
        Self { batch }
    }

    /// Runs a statement with `?` for each value. Returns the number of rows that it found.
    ///
    /// # Errors
    ///
    /// [`CodeError::Refused`] if MySQL refuses the statement, otherwise [`CodeError::Server`].
    pub async fn execute(&mut self, sql: &'static str, values: &[Value]) -> Result<u64, CodeError> {
        Ok(self.batch.execute(sql, values).await?)
    }

    /// Runs a query with `?` for each value. Returns its rows.
    ///
    /// # Errors
    ///
    /// As [`Tables::execute`].
    pub async fn fetch(
        &mut self,
        sql: &'static str,
        values: &[Value],
    ) -> Result<Vec<MySqlRow>, CodeError> {
        Ok(self.batch.fetch(sql, values).await?)
    }
}

/// Why a projection in Rust did not apply an event.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The event cannot be applied. The text is the reason, which must not contain values of the event.
    #[error("{0}")]
    Refused(String),
    /// MySQL failed. The batch is retried.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A failure of MySQL that the event does not cause.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ServerError(pub(crate) Error);

impl From<Error> for CodeError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(Refusal { number, message, .. }) => {
                Self::Refused(format!("MySQL refused the statement: {message} ({number})"))
            }
            other => Self::Server(ServerError(other)),
        }
    }
}
