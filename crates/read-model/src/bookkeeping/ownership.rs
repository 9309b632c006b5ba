//! Work on a projection that one session does at a time, by a lock of the server.

use sqlx::query_scalar;

use super::Ledger;
use crate::session::within;
use crate::{Error, Session};

/// What one session at a time may do with a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lock {
    /// Sweeping it, or replaying its history: both move its checkpoint.
    Checkpoint,
    /// Emptying and removing queues after their number has changed.
    Queues,
    /// A rebuild, a comparison, or another change of its tables as a whole.
    Rebuild,
    /// Counting missing events.
    Reconcile,
}

impl Lock {
    /// The name within the database. Daemons of different versions have to agree on it.
    fn name(self, ledger: &Ledger) -> String {
        let projection = ledger.projection();
        match self {
            Self::Checkpoint => projection.to_owned(),
            Self::Queues => format!("{projection}.queues"),
            Self::Rebuild => format!("{projection}.rebuild"),
            Self::Reconcile => format!("{projection}.audit"),
        }
    }
}

impl Session {
    /// Takes a lock, unless another session has it. This session keeps it until it gives it up, or ends.
    ///
    /// # Errors
    ///
    /// When MySQL cannot be asked.
    pub async fn try_own(&mut self, ledger: &Ledger, lock: Lock) -> Result<bool, Error> {
        let name = lock.name(ledger);
        if self.owned.contains(&name) {
            return Ok(true);
        }
        // The names of locks are global to the server, and have 64 characters at most.
        let take = query_scalar(
            "SELECT GET_LOCK(CONCAT('projector.sweep.', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)), 0)",
        )
        .bind(&name)
        .fetch_one(&mut self.connection);
        let taken: Option<i64> = within("asking for a lock", take).await?;
        let own = taken == Some(1);
        if own {
            self.owned.insert(name);
        }
        Ok(own)
    }

    /// Gives a lock up, if this session has it.
    ///
    /// # Errors
    ///
    /// When MySQL cannot be asked. The lock is free when the session ends.
    pub async fn disown(&mut self, ledger: &Ledger, lock: Lock) -> Result<(), Error> {
        let name = lock.name(ledger);
        if !self.owned.remove(&name) {
            return Ok(());
        }
        let release = query_scalar(
            "SELECT RELEASE_LOCK(CONCAT('projector.sweep.', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)))",
        )
        .bind(&name)
        .fetch_one(&mut self.connection);
        let released: Result<Option<i64>, _> = within("giving up a lock", release).await;
        released.map(drop)
    }
}
