//! Whether a database has the event store, or receives it from another server.
//!
//! Logical replication copies rows, and no sequences. Until the subscription is dropped, rows can change behind
//! the back of a daemon: two relays would publish them. Until the sequences are brought forward, an append gets
//! a position that has been in use, or one that projections have passed.

use sqlx::{query_as, query_scalar};

use crate::session::within;
use crate::{Error, Session};

impl Session {
    /// Checks that this database has the event store and not a part of it: all migrations known to this program
    /// have been applied, no subscription brings rows from another server, and the next position is a new one.
    ///
    /// # Errors
    ///
    /// [`Error::NotMigrated`], [`Error::Subscriber`] or [`Error::PositionsBehind`], and when a statement fails.
    pub async fn require_complete(&mut self) -> Result<(), Error> {
        self.require_migrated().await?;
        self.require_no_subscription().await?;
        self.require_new_positions().await
    }

    async fn require_no_subscription(&mut self) -> Result<(), Error> {
        let subscription: Option<String> = within(
            self.client_limit(),
            "searching for subscriptions",
            query_scalar(
                "SELECT s.subname::text
                 FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
                 WHERE r.srrelid IN ('events'::regclass, 'outbox'::regclass)
                 LIMIT 1",
            )
            .fetch_optional(&mut self.connection),
        )
        .await?;
        subscription.map_or(Ok(()), |subscription| Err(Error::Subscriber { subscription }))
    }

    async fn require_new_positions(&mut self) -> Result<(), Error> {
        // The sequence is read after the snapshot was taken: no committed event can be above it.
        let (highest, last): (Option<i64>, i64) = within(
            self.client_limit(),
            "comparing the positions with their sequence",
            query_as(
                "SELECT (SELECT max(position) FROM events WHERE position > sequence.last), last
                 FROM (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last
                       FROM events_position_seq) AS sequence",
            )
            .fetch_one(&mut self.connection),
        )
        .await?;
        highest.map_or(Ok(()), |highest| Err(Error::PositionsBehind { highest, last }))
    }
}
