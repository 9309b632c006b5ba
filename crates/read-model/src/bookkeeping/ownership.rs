//! Named locks of the server, for work on a projection that only one session may do at a time.

use sqlx::query_scalar;

use super::Ledger;
use crate::session::within;
use crate::{Error, Session};

/// The work that a lock protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lock {
    /// The sweeper and the replay, which both move the checkpoint.
    Checkpoint,
    /// Emptying and deleting queues after a change of their number.
    Queues,
    /// A rebuild, a comparison, or any other work on the tables as a whole.
    Rebuild,
    /// Counting the events that were not applied (`projector reconcile`).
    Reconcile,
}

impl Lock {
    /// The name of the lock within the database. It never changes, because daemons of different versions
    /// must agree on it.
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
    /// Acquires a lock without waiting. Returns false if another session holds it. The session holds the
    /// lock until [`Session::disown`], or until it ends.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn try_own(&mut self, ledger: &Ledger, lock: Lock) -> Result<bool, Error> {
        let name = lock.name(ledger);
        if self.owned.contains(&name) {
            return Ok(true);
        }
        // Lock names are global to the server and have at most 64 characters, hence the hash with the
        // database.
        let take = query_scalar(
            "SELECT GET_LOCK(CONCAT('projector.sweep.', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)), 0)",
        )
        .bind(&name)
        .fetch_one(&mut self.connection);
        let taken: Option<i64> = within("acquiring a lock", take).await?;
        let own = taken == Some(1);
        if own {
            self.owned.insert(name);
        }
        Ok(own)
    }

    /// Releases a lock if this session holds it.
    ///
    /// # Errors
    ///
    /// When MySQL fails. The lock is then released when the session ends.
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
        let released: Result<Option<i64>, _> = within("releasing a lock", release).await;
        released.map(drop)
    }
}
