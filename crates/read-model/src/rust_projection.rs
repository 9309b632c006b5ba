//! Projections in Rust, for what SQL cannot say.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use domain_events::StoredEvent;
use futures_util::future::BoxFuture;
use sqlx::mysql::MySqlRow;

use projection::Value;

use crate::{Batch, Error, Refusal};

/// What a projection does, in Rust.
///
/// Its folder has `projection.toml` and `tables.sql`, and no handlers. Everything else is as for SQL:
/// exactly-once effects, healing, parking. Its events are applied one by one, one batch at a time.
pub trait RustProjection: Send + Sync {
    /// Applies one event, in the transaction of its batch.
    ///
    /// It must depend on nothing but the event and the projection's own tables, so that the read model
    /// can be built anew.
    ///
    /// # Errors
    ///
    /// [`CodeError::Refused`] parks the event's stream. Errors of [`Tables`] are to be passed on.
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

/// The projections in Rust, by the name of their folders.
#[derive(Clone, Default)]
pub struct Registry(HashMap<String, Arc<dyn RustProjection>>);

impl Registry {
    /// Adds a projection.
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

/// A batch without its lifetime.
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

    /// Runs a statement, with `?` for each value, and gives how many rows it found.
    ///
    /// # Errors
    ///
    /// [`CodeError::Refused`] when MySQL refuses it, otherwise [`CodeError::Server`].
    pub async fn execute(&mut self, sql: &'static str, values: &[Value]) -> Result<u64, CodeError> {
        Ok(self.batch.execute(sql, values).await?)
    }

    /// Reads rows.
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
    /// The event cannot be applied; the reason, without values of the event.
    #[error("{0}")]
    Refused(String),
    /// MySQL let us down; the event is tried again.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A failure of MySQL that is not the event's fault.
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
