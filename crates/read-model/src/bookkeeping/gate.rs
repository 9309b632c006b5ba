//! The gate of a projection: a row that every batch locks first.
//!
//! It lies outside the tables that a rebuild swaps. A session that holds it exclusively knows that no
//! batch has touched a table.

use sqlx::mysql::MySqlConnection;

use super::Ledger;
use crate::Error;
use crate::session::within;

/// What the gate of a projection says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Why nothing is applied until a person resumes the projection, if it is paused.
    pub paused: Option<String>,
    /// Changes when a rebuild puts other tables in service.
    pub generation: u32,
    /// Whether a rebuild is about to swap the tables, or has swapped them without recording it yet.
    pub swapping: bool,
}

/// What a batch keeps others from, until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Others may not change the gate.
    Shared,
    /// No other batch runs: two of them might change the same rows in two orders.
    Exclusive,
}

impl Ledger {
    /// Waits for the gate of the projection, and keeps it until the transaction ends.
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
        let read = sqlx::query_as(sql).bind(self.projection()).fetch_optional(connection);
        let found: Option<(Option<String>, u32, bool)> =
            within("waiting for the gate", read).await?;
        let (paused, generation, swapping) = found.ok_or_else(|| self.not_migrated())?;
        Ok(Gate { paused, generation, swapping })
    }
}
