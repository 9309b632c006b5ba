//! Why a pass failed.

/// The server that failed. Its connection must not be used again.
#[derive(Debug)]
pub(crate) enum Error {
    /// PostgreSQL, or the way to it.
    Store(event_store::Error),
    /// RabbitMQ, or the way to it.
    Broker(broker::Error),
}

impl From<event_store::Error> for Error {
    fn from(error: event_store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<broker::Error> for Error {
    fn from(error: broker::Error) -> Self {
        Self::Broker(error)
    }
}
