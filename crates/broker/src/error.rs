//! What can go wrong with RabbitMQ, by what the caller can do about it.

use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// A failure of the broker, or of the way to it.
///
/// No variant carries a payload, a password or a URL. After any of them the connection is to be
/// thrown away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be used; nothing was tried.
    #[error("the RabbitMQ URL is not valid: expected amqp://user:password@host:port/vhost")]
    Url,
    /// There is no connection: the broker is away, or the way to it.
    #[error("RabbitMQ at {address} cannot be reached")]
    Unreachable {
        /// Host, port and virtual host.
        address: String,
        /// What the network or the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The broker refused user, password or virtual host.
    #[error("RabbitMQ at {address} refused the login: check user, password and virtual host")]
    Login {
        /// Host, port and virtual host.
        address: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// No answer in time.
    #[error("{operation} gave no answer from RabbitMQ within {limit:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// A queue or exchange exists with other arguments.
    #[error(
        "{name} exists in RabbitMQ with other settings; \
         remove it there (its messages are in the event store) or give this one another name"
    )]
    Mismatch {
        /// The queue or exchange.
        name: String,
        /// What the broker said: it names the argument.
        #[source]
        source: lapin::Error,
    },
    /// The broker ended the consumer: its queue was deleted, or its node went away.
    #[error("RabbitMQ cancelled the consumer of queue {queue}: was the queue deleted?")]
    Cancelled {
        /// The queue.
        queue: String,
    },
    /// A message could not be put into a dead-letter queue.
    #[error("RabbitMQ did not take a message for the dead-letter queue {queue}")]
    NotDeadLettered {
        /// The dead-letter queue.
        queue: String,
    },
    /// The connection ended while nothing was being done.
    #[error("the connection to RabbitMQ was lost")]
    Lost,
    /// A call failed.
    #[error("{operation} in RabbitMQ failed")]
    Call {
        /// What was being done.
        operation: &'static str,
        /// What lapin or the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The broker cannot spread messages by a hash.
    #[error(
        "RabbitMQ has no exchanges of type x-consistent-hash, which `partitions` needs: enable its \
         plugin, rabbitmq_consistent_hash_exchange"
    )]
    Plugin {
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// A queue that shall go still has messages, or a consumer that may have some.
    #[error("queue {queue} is not empty, or somebody consumes it")]
    NotEmpty {
        /// The queue.
        queue: String,
    },
    /// A name is longer than AMQP allows.
    #[error("{name:?} is longer than the 255 bytes that AMQP allows")]
    Name {
        /// The name.
        name: String,
    },
}

impl Error {
    /// Whether trying again cannot help until somebody changes the configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Url
                | Self::Login { .. }
                | Self::Mismatch { .. }
                | Self::Plugin { .. }
                | Self::Name { .. }
        )
    }

    /// Whether the broker answered that this login may not do that.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Call { source, .. } if is_soft(source, AMQPSoftError::ACCESSREFUSED))
    }
}

/// Whether the broker refused the login or the virtual host.
pub(crate) fn is_refusal(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => matches!(
            error.kind(),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
                | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
        ),
        ErrorKind::AuthProviderError(_) => true,
        _ => false,
    }
}

/// Whether the broker closed the channel for a given reason.
pub(crate) fn is_soft(error: &lapin::Error, reason: AMQPSoftError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ProtocolError(error) if *error.kind() == AMQPErrorKind::Soft(reason)
    )
}

/// Whether the broker closed the connection for a given reason.
pub(crate) fn is_hard(error: &lapin::Error, reason: AMQPHardError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ProtocolError(error) if *error.kind() == AMQPErrorKind::Hard(reason)
    )
}
