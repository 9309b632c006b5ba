//! Deleting what was published long ago.

use std::time::Duration;

use sqlx::{query, query_as};

use crate::session::within;
use crate::{Error, OutboxId, Session};

/// What a relay must hold to delete rows; any number that nobody else uses.
const RETENTION_LOCK: i64 = 7_166_302;

/// What one batch of deleting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// Another relay is at it.
    Elsewhere,
    /// So many rows were deleted, of those after the cursor; the next batch begins after `last`.
    Rows {
        /// How many.
        count: u64,
        /// The last row that was looked at.
        last: OutboxId,
    },
    /// There is no row after the cursor, or none that is old enough.
    None,
}

impl Session {
    /// Deletes processed rows older than `retention`, among at most `limit` rows with ids after
    /// `after`.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be told.
    pub async fn delete_processed(
        &mut self,
        retention: Duration,
        after: OutboxId,
        limit: u32,
    ) -> Result<Deleted, Error> {
        let client_limit = self.client_limit();
        let mut transaction = self.begin_claim().await?;
        let lock = query_as("SELECT pg_try_advisory_xact_lock($1)").bind(RETENTION_LOCK);
        let (ours,): (bool,) =
            within(client_limit, "asking for retention", lock.fetch_one(&mut *transaction)).await?;
        if !ours {
            within(client_limit, "releasing retention", transaction.rollback()).await?;
            return Ok(Deleted::Elsewhere);
        }
        let page = query_as(
            "SELECT page.id, page.processed_at < now() - make_interval(secs => $3)
             FROM (SELECT id, processed_at FROM outbox WHERE id > $1 ORDER BY id LIMIT $2) AS page
             ORDER BY page.id",
        )
        .bind(after.0)
        .bind(i64::from(limit))
        .bind(retention.as_secs_f64());
        let page: Vec<(i64, Option<bool>)> =
            within(client_limit, "looking for old events", page.fetch_all(&mut *transaction))
                .await?;
        // Rows are processed nearly in the order of their ids, so the first one that is too young
        // ends the round; what waits is passed over.
        let old = page.iter().take_while(|(_, old)| *old != Some(false));
        let Some(last) = old.clone().last().map(|(id, _)| OutboxId(*id)) else {
            within(client_limit, "releasing retention", transaction.rollback()).await?;
            return Ok(Deleted::None);
        };
        let ids: Vec<i64> = old.filter(|(_, old)| *old == Some(true)).map(|(id, _)| *id).collect();
        let delete = query("DELETE FROM outbox WHERE id = ANY ($1) AND processed_at IS NOT NULL");
        let deleted = delete.bind(&ids).execute(&mut *transaction);
        let count = within(client_limit, "deleting old events", deleted).await?.rows_affected();
        within(client_limit, "committing retention", transaction.commit()).await?;
        Ok(Deleted::Rows { count, last })
    }
}
