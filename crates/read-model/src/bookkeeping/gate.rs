//! The gate of a projection: a row of `projector_projections` that every batch locks first.
//!
//! The row is outside the tables that a rebuild swaps. While a session holds it exclusively, no
//! other batch holds a lock on a table of the projection.

use sqlx::mysql::MySqlConnection;

use super::Ledger;
use crate::session::within;
use crate::{Error, Session};

/// The content of the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The reason for the pause, if the projection is paused until a person resumes it.
    pub paused: Option<String>,
    /// The number of times that other tables or files were put in service.
    pub generation: u32,
    /// Whether a rebuild is about to swap the tables, or has swapped them and not yet recorded it.
    pub swapping: bool,
}

/// How a batch locks the gate until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Other batches may run; the gate cannot change.
    Shared,
    /// No other batch runs, because two batches might lock the same rows in different orders.
    Exclusive,
}

impl Ledger {
    /// Waits for the gate of the projection, and locks it until the transaction ends.
    pub(crate) async fn pass(
        &self,
        connection: &mut MySqlConnection,
        mode: LockMode,
    ) -> Result<Gate, Error> {
        let sql = match mode {
            LockMode::Shared => {
                "SELECT paused_reason, generation, swapping
                 FROM projector_projections WHERE name = ? FOR SHARE"
            }
            LockMode::Exclusive => {
                "SELECT paused_reason, generation, swapping
                 FROM projector_projections WHERE name = ? FOR UPDATE"
            }
        };
        self.read_gate(connection, sql).await
    }

    async fn read_gate(
        &self,
        connection: &mut MySqlConnection,
        sql: &'static str,
    ) -> Result<Gate, Error> {
        let read = sqlx::query_as(sql).bind(self.projection()).fetch_optional(connection);
        let found: Option<(Option<String>, u32, bool)> =
            within("waiting for the gate", read).await?;
        let (paused, generation, swapping) = found.ok_or_else(|| self.not_migrated())?;
        Ok(Gate { paused, generation, swapping })
    }
}

impl Session {
    /// The content of the gate, without waiting for it.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn gate(&mut self, ledger: &Ledger) -> Result<Gate, Error> {
        let sql = "SELECT paused_reason, generation, swapping
                   FROM projector_projections WHERE name = ?";
        ledger.read_gate(&mut self.connection, sql).await
    }
}
