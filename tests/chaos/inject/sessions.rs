//! Faults that end database sessions or lock rows.

use std::time::{Duration, Instant};

use rand::RngExt;
use sqlx::mysql::MySqlConnection;
use tokio::time::{sleep, timeout};

use super::Harm;
use crate::databases;
use crate::faults::Fault;

/// The number of busy streams.
const HOT_STREAMS: u32 = 20;
/// Rows to change first: in a deadlock, MySQL rolls back the transaction that has changed fewer rows.
const WEIGHT: u32 = 5_000;

impl Harm {
    pub(super) async fn end_postgres_sessions(&self) -> Result<(), String> {
        let mut connection = databases::postgres(&self.postgres_url).await;
        let end = sqlx::query_scalar(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name <> '' AND random() < 0.5",
        );
        some(within(end.fetch_one(&mut connection)).await?)
    }

    pub(super) async fn end_mysql_sessions(&self) -> Result<(), String> {
        let mut connection = databases::mysql(&self.mysql_url).await;
        let find = sqlx::query_scalar(
            "SELECT CAST(id AS SIGNED) FROM information_schema.processlist
             WHERE db = DATABASE() AND id <> CONNECTION_ID() AND RAND() < 0.5",
        );
        let ids: Vec<i64> = within(find.fetch_all(&mut connection)).await?;
        let mut ended = 0;
        for id in ids {
            // The session may have ended meanwhile.
            let kill = within(sqlx::query("KILL ?").bind(id).execute(&mut connection)).await;
            ended += i64::from(kill.is_ok());
        }
        some(ended)
    }

    /// Locks the rows of streams in another order than batches do, so that batches lose deadlocks.
    pub(super) async fn deadlock(&self, lasts: Duration) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < lasts {
            let mut connection = databases::mysql(&self.mysql_url).await;
            let lock_all = lock_in_disorder(&mut connection);
            // A fast batch may take all its locks first.
            drop(timeout(databases::LIMIT, lock_all).await);
        }
        Ok(())
    }

    /// Locks rows that every batch needs, of a read model or of its bookkeeping.
    pub(super) async fn hold_rows(&self, fault: &Fault) -> Result<(), String> {
        let table =
            if fault.which.is_multiple_of(2) { "ledger_streams" } else { "ledger__streams" };
        let mut connection = databases::mysql(&self.mysql_url).await;
        within(sqlx::raw_sql("BEGIN").execute(&mut connection)).await?;
        let hold = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT stream_id FROM {table}
             WHERE stream_id IN ('account-1', 'account-2', 'account-3') FOR UPDATE"
        )));
        within(hold.execute(&mut connection)).await?;
        sleep(fault.lasts).await;
        within(sqlx::raw_sql("ROLLBACK").execute(&mut connection)).await.map(drop)
    }
}

/// Locks one row, waits until a batch that holds others waits for it, then locks those too.
async fn lock_in_disorder(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS chaos_weight (n INT)")
        .execute(&mut *connection)
        .await?;
    sqlx::raw_sql("BEGIN; SET SESSION cte_max_recursion_depth = 1000000")
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO chaos_weight
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
         SELECT n FROM numbers",
    )
    .bind(WEIGHT)
    .execute(&mut *connection)
    .await?;
    let first = format!("account-{}", rand::rng().random_range(1..=HOT_STREAMS));
    sqlx::query("SELECT total FROM ledger_streams WHERE stream_id = ? FOR UPDATE")
        .bind(first)
        .execute(&mut *connection)
        .await?;
    sleep(Duration::from_millis(200)).await;
    for number in 1..=HOT_STREAMS {
        sqlx::query("SELECT total FROM ledger_streams WHERE stream_id = ? FOR UPDATE")
            .bind(format!("account-{number}"))
            .execute(&mut *connection)
            .await?;
    }
    sqlx::raw_sql("ROLLBACK").execute(connection).await.map(drop)
}

fn some(sessions: i64) -> Result<(), String> {
    if sessions > 0 { Ok(()) } else { Err("there was no session".to_owned()) }
}

async fn within<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match timeout(databases::LIMIT, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the server did not answer".to_owned()),
    }
}
