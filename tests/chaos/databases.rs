//! Connections that are made again until there is one.

use std::time::Duration;

use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use tokio::time::{sleep, timeout};

/// What the harness itself asks of a server that works takes less.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// A connection to PostgreSQL, as soon as there is one.
pub(crate) async fn postgres(url: &str) -> PgConnection {
    loop {
        if let Ok(Ok(connection)) = timeout(LIMIT, PgConnection::connect(url)).await {
            return connection;
        }
        sleep(PAUSE).await;
    }
}

/// A connection to MySQL, as soon as there is one.
pub(crate) async fn mysql(url: &str) -> MySqlConnection {
    loop {
        if let Ok(Ok(connection)) = timeout(LIMIT, MySqlConnection::connect(url)).await {
            return connection;
        }
        sleep(PAUSE).await;
    }
}
