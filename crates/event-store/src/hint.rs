//! Hints: PostgreSQL notifies an idle relay when an event is appended.
//!
//! A hint can be lost, so a relay that waits for one also checks the outbox from time to time.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::query;
use tokio::time::timeout;

use crate::session::{CONNECT_LIMIT, Host, connect_error, is_standby, within};
use crate::{Error, Options, Session};

/// The channel that the SQL function `wake_relay()` notifies.
const CHANNEL: &str = "outbox";

/// A connection that receives hints.
pub struct Listener(PgListener);

/// Why [`Listener::next`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// An event was appended.
    Hint,
    /// No hint came, and the connection works.
    Quiet,
}

impl Listener {
    /// Connects and listens. The connection must not go through a pooler in transaction mode.
    ///
    /// # Errors
    ///
    /// Those of [`Session::connect`].
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let mut failed = None;
        for (host, limit) in hosts::shuffled(&options.hosts, CONNECT_LIMIT) {
            match Self::connect_to(host, limit).await {
                Ok(listener) => return Ok(listener),
                Err(error) => hosts::keep(&mut failed, error, is_standby),
            }
        }
        Err(failed.unwrap_or(Error::Url))
    }

    async fn connect_to(host: &Host, limit: Duration) -> Result<Self, Error> {
        let connect = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(limit)
                .connect_with(host.connect.clone())
                .await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.ignore_pool_close_event(true);
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(listener)
        };
        timeout(limit, connect)
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "connecting", limit })?
            .map(Self)
            .map_err(|source| connect_error(host, source))
    }

    /// Waits for the next hint. After `patience` without one, checks the connection and returns.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn next(&mut self, patience: Duration) -> Result<Wake, Error> {
        let operation = "waiting for a hint";
        let Ok(received) = timeout(patience, self.0.try_recv()).await else {
            within(CONNECT_LIMIT, operation, query("SELECT 1").execute(&mut self.0)).await?;
            return Ok(Wake::Quiet);
        };
        match received {
            Ok(Some(_notification)) => Ok(Wake::Hint),
            Ok(None) => {
                let lost = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
                Err(Error::Statement { operation, source: lost.into() })
            }
            Err(source) => Err(Error::statement(operation, source)),
        }
    }
}

impl Session {
    /// Requests a hint from the next writer. Claim once more afterwards: a writer that committed
    /// before the request sends none.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn request_hint(&mut self) -> Result<(), Error> {
        let request = query("SELECT setval('outbox_sleeper', 1)");
        within(self.client_limit(), "requesting a hint", request.execute(&mut self.connection))
            .await
            .map(drop)
    }
}
