//! A worker's connection to the broker.

use broker::{Connection, Publisher};

use crate::context::Context;

/// A connection with a publisher to the exchange.
pub(crate) struct Link {
    pub(crate) publisher: Publisher,
    pub(crate) connection: Connection,
    /// Whether publishing failed while the broker was blocked (it was short of memory or disk).
    ///
    /// The messages are still on their way then. The worker keeps this connection until the broker
    /// is unblocked: copies sent on another connection could overtake them.
    pub(crate) failed: bool,
}

impl Link {
    /// Connects, and declares the exchange.
    pub(crate) async fn connect(context: &Context) -> Result<Self, broker::Error> {
        let settings = &context.settings;
        let connection = Connection::connect(&context.broker).await?;
        connection.declare_exchange(&settings.exchange).await?;
        let publisher = connection.publisher(&settings.exchange, settings.confirm_timeout).await?;
        context.broker_login.accepted();
        Ok(Self { publisher, connection, failed: false })
    }
}
