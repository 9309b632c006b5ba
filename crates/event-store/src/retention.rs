//! Deletes rows that were published long ago.

use std::time::Duration;

use sqlx::{query, query_as};

use crate::session::within;
use crate::{Error, OutboxId, Session};

/// The advisory lock of the relay that deletes rows. The number is arbitrary.
const RETENTION_LOCK: i64 = 7_166_302;

/// The result of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// Another relay deletes rows now.
    Elsewhere,
    /// Rows were checked, and those old enough were deleted.
    Rows {
        /// How many were deleted.
        count: u64,
        /// The last row that was checked; the next batch begins after it.
        last: OutboxId,
    },
    /// The next row is not old enough, or there is none.
    None,
}

impl Session {
    /// Checks at most `limit` rows with ids above `after`, and deletes those processed longer than
    /// `retention` ago.
    ///
    /// # Errors
    ///
    /// When a statement fails.
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
            within(client_limit, "locking retention", lock.fetch_one(&mut *transaction)).await?;
        if !ours {
            within(client_limit, "unlocking retention", transaction.rollback()).await?;
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
            within(client_limit, "reading old rows", page.fetch_all(&mut *transaction)).await?;
        // Rows are processed nearly in the order of their ids, so the batch ends at the first processed
        // row that is too young. Unprocessed rows are passed over.
        let old = page.iter().take_while(|(_, old)| *old != Some(false));
        let Some(last) = old.clone().last().map(|(id, _)| OutboxId(*id)) else {
            within(client_limit, "unlocking retention", transaction.rollback()).await?;
            return Ok(Deleted::None);
        };
        let ids: Vec<i64> = old.filter(|(_, old)| *old == Some(true)).map(|(id, _)| *id).collect();
        let delete = query("DELETE FROM outbox WHERE id = ANY ($1) AND processed_at IS NOT NULL");
        let deleted = delete.bind(&ids).execute(&mut *transaction);
        let count = within(client_limit, "deleting old rows", deleted).await?.rows_affected();
        within(client_limit, "committing retention", transaction.commit()).await?;
        Ok(Deleted::Rows { count, last })
    }
}
