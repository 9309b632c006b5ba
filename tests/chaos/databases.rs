//! Connections: each call retries until it has one.

use std::time::Duration;

use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use tokio::time::{sleep, timeout};

/// Longer than any query of the harness takes on a working server.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// Connects to PostgreSQL, however often it takes.
pub(crate) async fn postgres(url: &str) -> PgConnection {
    loop {
        if let Ok(Ok(connection)) = timeout(LIMIT, PgConnection::connect(url)).await {
            return connection;
        }
        sleep(PAUSE).await;
    }
}

/// Connects to MySQL, however often it takes.
pub(crate) async fn mysql(url: &str) -> MySqlConnection {
    loop {
        if let Ok(Ok(connection)) = timeout(LIMIT, MySqlConnection::connect(url)).await {
            return connection;
        }
        sleep(PAUSE).await;
    }
}
