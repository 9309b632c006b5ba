//! Errors of the broker, distinguished by what the caller can do about them.

use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// A failure of the broker, or of the network to it.
///
/// No variant contains a payload, a password or a URL. After any of them, drop the connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be parsed. No connection was attempted.
    #[error("the RabbitMQ URL is not valid: expected amqp://user:password@host:port/vhost")]
    Url,
    /// The broker, or the network to it, is down.
    #[error("RabbitMQ at {address} cannot be reached")]
    Unreachable {
        /// Host, port and virtual host.
        address: String,
        /// The error of the network or the broker.
        #[source]
        source: lapin::Error,
    },
    /// The broker refused the user, the password or the virtual host.
    #[error("RabbitMQ at {address} refused the login: check user, password and virtual host")]
    Login {
        /// Host, port and virtual host.
        address: String,
        /// The broker's answer.
        #[source]
        source: lapin::Error,
    },
    /// The broker did not answer in time.
    #[error("RabbitMQ gave no answer within {limit:?} ({operation})")]
    Timeout {
        /// The operation.
        operation: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// A queue or exchange exists with other settings.
    #[error(
        "{name} exists in RabbitMQ with other settings ({reason}): delete it there (the event store \
         still has the events), or configure another name"
    )]
    Mismatch {
        /// The queue or exchange.
        name: String,
        /// The broker's answer, which names the first setting that differs, with both values.
        reason: String,
    },
    /// A queue was deleted while it was consumed.
    #[error("queue {queue} was deleted in RabbitMQ while it was consumed")]
    QueueDeleted {
        /// The queue.
        queue: String,
    },
    /// The broker ended the consumer of a queue that exists.
    #[error(
        "RabbitMQ ended the consumer of queue {queue}, which exists: its node stopped, or the queue was \
         deleted and declared again"
    )]
    Cancelled {
        /// The queue.
        queue: String,
    },
    /// The broker does not know a consumer that this program has started.
    #[error(
        "RabbitMQ has lost queue {queue} or its consumers, although this instance consumes it; the queue is \
         declared and consumed again"
    )]
    NotConsumed {
        /// The queue.
        queue: String,
    },
    /// The broker did not accept a message for a dead-letter queue.
    #[error("RabbitMQ did not accept a message for the dead-letter queue {queue}")]
    NotDeadLettered {
        /// The dead-letter queue.
        queue: String,
    },
    /// The connection ended between two operations.
    #[error("the connection to RabbitMQ was lost")]
    Lost,
    /// A call failed.
    #[error("{operation} in RabbitMQ failed")]
    Call {
        /// The operation.
        operation: &'static str,
        /// The error of lapin or the broker.
        #[source]
        source: lapin::Error,
    },
    /// The broker does not support hash exchanges.
    #[error(
        "RabbitMQ does not support exchanges of type x-consistent-hash, which partitions need: enable \
         its plugin rabbitmq_consistent_hash_exchange"
    )]
    Plugin {
        /// The broker's answer.
        #[source]
        source: lapin::Error,
    },
    /// A queue to be deleted still has messages, or a consumer that may hold unsettled ones.
    #[error("queue {queue} has messages or a consumer")]
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
    /// Whether a retry cannot succeed until the configuration is changed.
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

    /// Whether the login lacks the right to the operation.
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

/// What the broker answered, without lapin's names for it.
pub(crate) fn answer(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => {
            let text = error.get_message().as_str();
            text.split_once(" - ").map_or(text, |(_code, text)| text).to_owned()
        }
        _ => error.to_string(),
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
