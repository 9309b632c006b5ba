//! Exchanges, queues and bindings.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, LongLongInt};

use crate::connection::{call, short};
use crate::error::is_soft;
use crate::{Connection, Error};

/// Deliveries of one message before the broker itself dead-letters it.
///
/// High, because a crash counts against every unsettled message, and twenty crashes in a row must
/// not empty a healthy queue.
const DELIVERY_LIMIT: LongLongInt = 1_000;

/// A queue of one projection, and its dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The name of its dead-letter queue.
    pub dead_letters: String,
    /// What it receives.
    pub bindings: Vec<Binding>,
}

/// Sends messages of an exchange to a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// A topic exchange.
    pub exchange: String,
    /// The pattern of routing keys.
    pub key: String,
}

impl Connection {
    /// Makes sure that a durable topic exchange exists.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it exists as something else.
    pub async fn declare_exchange(&self, name: &str) -> Result<(), Error> {
        match self.declare_topic(name, false).await {
            // Without the right to declare it, it is enough that it is there.
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::ACCESSREFUSED) => {
                self.declare_topic(name, true).await
            }
            other => other.map_err(|error| mismatch(&format!("exchange {name}"), error)),
        }
    }

    async fn declare_topic(&self, name: &str, passive: bool) -> Result<(), Error> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, passive, ..Default::default() };
        let (name, arguments) = (short(name)?, FieldTable::default());
        let declare = channel.exchange_declare(name, ExchangeKind::Topic, options, arguments);
        call("declaring an exchange", declare).await
    }

    /// Makes sure that a queue, its dead-letter queue and its bindings exist. The exchanges must.
    ///
    /// Says whether the queue is new: then it lacks what was published before.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when one of the queues exists with other settings.
    pub async fn declare_queue(&self, queue: &Queue) -> Result<bool, Error> {
        let new = self.ready_messages(&queue.name).await?.is_none();
        self.declare(&queue.dead_letters, [("x-queue-type", text("quorum"))]).await?;
        self.declare(
            &queue.name,
            [
                ("x-queue-type", text("quorum")),
                ("x-single-active-consumer", AMQPValue::Boolean(true)),
                ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text(&queue.dead_letters)),
                // Both are needed for dead letters that survive a crash on their way.
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ],
        )
        .await?;
        let channel = self.channel().await?;
        for binding in &queue.bindings {
            let bind = channel.queue_bind(
                short(&queue.name)?,
                short(&binding.exchange)?,
                short(&binding.key)?,
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            call("binding a queue", bind).await?;
        }
        Ok(new)
    }

    /// How many messages wait in a queue, not counting those that a consumer has; `None` when there
    /// is no such queue.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked.
    pub async fn ready_messages(&self, queue: &str) -> Result<Option<u32>, Error> {
        // A missing queue costs the channel.
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declare = channel.queue_declare(short(queue)?, options, FieldTable::default());
        match call("looking for a queue", declare).await {
            Ok(found) => Ok(Some(found.message_count())),
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::NOTFOUND) => {
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    async fn declare<const N: usize>(
        &self,
        name: &str,
        arguments: [(&str, AMQPValue); N],
    ) -> Result<(), Error> {
        let channel = self.channel().await?;
        let mut table = FieldTable::default();
        for (key, value) in arguments {
            table.insert(key.into(), value);
        }
        let declare = channel.queue_declare(short(name)?, QueueDeclareOptions::durable(), table);
        call("declaring a queue", declare)
            .await
            .map(drop)
            .map_err(|error| mismatch(&format!("queue {name}"), error))
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn mismatch(name: &str, error: Error) -> Error {
    match error {
        Error::Call { source, .. } if is_soft(&source, AMQPSoftError::PRECONDITIONFAILED) => {
            Error::Mismatch { name: name.to_owned(), source }
        }
        other => other,
    }
}
