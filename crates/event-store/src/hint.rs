//! Being woken when something is appended.
//!
//! A hint and no more: whoever waits for it looks by itself after a while.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::query;
use tokio::time::timeout;

use crate::session::{CONNECT_LIMIT, connect_error, within};
use crate::{Error, Options, Session};

/// The channel that `wake_relay()` notifies.
const CHANNEL: &str = "outbox";

/// A connection that listens.
pub struct Listener(PgListener);

impl Listener {
    /// Connects and listens. It must be a connection of its own, and not one through a pooler in
    /// transaction mode.
    ///
    /// # Errors
    ///
    /// As [`Session::connect`].
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let limit = CONNECT_LIMIT;
        let connect = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(limit)
                .connect_with(options.connect.clone())
                .await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.ignore_pool_close_event(true);
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(listener)
        };
        match timeout(limit, connect).await {
            Ok(Ok(listener)) => Ok(Self(listener)),
            Ok(Err(source)) => Err(connect_error(options, source)),
            Err(_elapsed) => Err(Error::Timeout { operation: "connecting", limit }),
        }
    }

    /// Waits for the next hint, at most for `patience`, and then makes sure that the connection is
    /// still there. Says whether there was a hint.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn next(&mut self, patience: Duration) -> Result<bool, Error> {
        let operation = "waiting for a hint";
        match timeout(patience, self.0.try_recv()).await {
            Ok(Ok(Some(_notification))) => Ok(true),
            Ok(Ok(None)) => {
                let lost = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
                Err(Error::Statement { operation, source: lost.into() })
            }
            Ok(Err(source)) => Err(Error::statement(operation, source)),
            Err(_elapsed) => {
                within(CONNECT_LIMIT, operation, query("SELECT 1").execute(&mut self.0)).await?;
                Ok(false)
            }
        }
    }
}

impl Session {
    /// Asks the next writer for a hint. Look once more afterwards: what was appended before gives
    /// none.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be told.
    pub async fn ask_for_hint(&mut self) -> Result<(), Error> {
        let ask = query("SELECT setval('outbox_sleeper', 1)");
        within(self.client_limit(), "asking for a hint", ask.execute(&mut self.connection))
            .await
            .map(drop)
    }
}
