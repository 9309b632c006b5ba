//! Declares and deletes exchanges, queues and bindings.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongLongInt};
use tokio::time::sleep;

use crate::connection::{CHECK_LIMIT, call, call_within, short};
use crate::error::{answer, is_hard, is_soft};
use crate::{Connection, Error};

/// How often a message is delivered before the broker itself dead-letters it.
///
/// The limit is high because a crash of the consumer counts for every unsettled message: RabbitMQ's
/// default of 20 would empty a healthy queue after twenty crashes in a row.
const DELIVERY_LIMIT: LongLongInt = 1_000;

/// How long a queue waits for a consumer whose node of the cluster has died, before another consumer becomes
/// active; in milliseconds. RabbitMQ's default is 60 s. Versions before 4.3 do not know the argument.
const DISCONNECTED_LIMIT: LongLongInt = 5_000;

/// How many checks in a row must find a queue empty before it is deleted. RabbitMQ also reports 0
/// messages when the leader of a quorum queue does not answer within 250 ms.
const EMPTY_CHECKS: u32 = 3;
/// The pause before each check.
const EMPTY_PAUSE: Duration = Duration::from_millis(300);

/// A queue of one projection, and its dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The name of its dead-letter queue.
    pub dead_letters: String,
    /// Which messages it receives.
    pub bindings: Vec<Binding>,
}

/// Routes messages of an exchange to a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// A topic exchange or a hash exchange.
    pub exchange: String,
    /// The pattern of routing keys; for a hash exchange, the weight.
    pub key: String,
}

/// The type of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'k> {
    /// Routes by patterns of routing keys.
    Topic,
    /// Distributes messages over its queues by a hash of a header.
    Hash {
        /// The header.
        header: &'k str,
    },
}

impl Connection {
    /// Declares a durable topic exchange. Without the right to declare it, checks that it exists.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it exists with another type or other settings.
    pub async fn declare_exchange(&self, name: &str) -> Result<(), Error> {
        match self.declare_as(name, &Kind::Topic).await {
            Err(error) if error.is_forbidden() => self.require_exchange(name).await,
            other => other,
        }
    }

    /// Checks that an exchange exists, whatever its type.
    pub(crate) async fn require_exchange(&self, name: &str) -> Result<(), Error> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let (name, arguments) = (short(name)?, FieldTable::default());
        let declare = channel.exchange_declare(name, ExchangeKind::Topic, options, arguments);
        call("checking an exchange", declare).await
    }

    /// Declares a durable exchange.
    pub(crate) async fn declare_as(&self, name: &str, kind: &Kind<'_>) -> Result<(), Error> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        let wanted = match kind {
            Kind::Topic => ExchangeKind::Topic,
            Kind::Hash { header } => {
                arguments.insert("hash-header".into(), text(header));
                ExchangeKind::Custom("x-consistent-hash".to_owned())
            }
        };
        let declare = channel.exchange_declare(short(name)?, wanted, options, arguments);
        match call("declaring an exchange", declare).await {
            Err(Error::Call { source, .. })
                if is_hard(&source, AMQPHardError::COMMANDINVALID)
                    && matches!(kind, Kind::Hash { .. }) =>
            {
                Err(Error::Plugin { source })
            }
            declared => declared.map_err(|error| mismatch(&format!("exchange {name}"), error)),
        }
    }

    /// Declares a durable exchange that distributes messages over its queues by a hash of a header:
    /// all messages with the same value of `header` go to the same queue. It receives the messages that
    /// the topic exchange `source` gets with routing keys that match `keys`.
    ///
    /// Without the right to declare it, assumes that it exists with its bindings.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it exists with another type or other settings, [`Error::Plugin`] when
    /// the broker does not support the type.
    pub async fn declare_hash_exchange(
        &self,
        name: &str,
        header: &str,
        source: &str,
        keys: &[String],
    ) -> Result<(), Error> {
        match self.declare_as(name, &Kind::Hash { header }).await {
            Err(error) if error.is_forbidden() => return Ok(()),
            declared => declared?,
        }
        let channel = self.channel().await?;
        for key in keys {
            let bind = channel.exchange_bind(
                short(name)?,
                short(source)?,
                short(key)?,
                ExchangeBindOptions::default(),
                FieldTable::default(),
            );
            call("binding an exchange", bind).await?;
        }
        Ok(())
    }

    /// Removes the bindings from `source` to a hash exchange, so that it receives no more messages. Its
    /// queues keep their messages.
    ///
    /// # Errors
    ///
    /// When a call fails. Missing bindings are no error.
    pub async fn cut_off(&self, name: &str, source: &str, keys: &[String]) -> Result<(), Error> {
        for key in keys {
            let channel = self.channel().await?;
            let unbind = channel.exchange_unbind(
                short(name)?,
                short(source)?,
                short(key)?,
                ExchangeUnbindOptions::default(),
                FieldTable::default(),
            );
            tolerate(call("unbinding an exchange", unbind).await)?;
        }
        Ok(())
    }

    /// Removes the bindings of a queue.
    ///
    /// # Errors
    ///
    /// When a call fails. Missing bindings are no error.
    pub async fn unbind(&self, queue: &Queue) -> Result<(), Error> {
        for binding in &queue.bindings {
            let channel = self.channel().await?;
            let unbind = channel.queue_unbind(
                short(&queue.name)?,
                short(&binding.exchange)?,
                short(&binding.key)?,
                FieldTable::default(),
            );
            tolerate(call("unbinding a queue", unbind).await)?;
        }
        Ok(())
    }

    /// Deletes a queue that has no messages and no consumer, which could hold unsettled ones.
    ///
    /// # Errors
    ///
    /// [`Error::NotEmpty`] when it has either, and when a call fails. A missing queue is no error.
    pub async fn delete_empty_queue(&self, name: &str) -> Result<(), Error> {
        // Quorum queues support neither `if_empty` nor `if_unused`.
        for _ in 0..EMPTY_CHECKS {
            // A consumer that has just left disappears in the meantime.
            sleep(EMPTY_PAUSE).await;
            let Some(found) = self.look_up(name).await? else { return Ok(()) };
            if found.message_count() > 0 || found.consumer_count() > 0 {
                return Err(Error::NotEmpty { queue: name.to_owned() });
            }
        }
        self.delete_queue(name).await
    }

    /// Deletes a queue with its messages.
    ///
    /// # Errors
    ///
    /// When the call fails, or the login may not delete the queue. A missing queue is no error.
    pub async fn delete_queue(&self, name: &str) -> Result<(), Error> {
        let channel = self.channel().await?;
        let delete = channel.queue_delete(short(name)?, QueueDeleteOptions::default());
        tolerate(call("deleting a queue", delete).await.map(drop))
    }

    /// Deletes an exchange.
    ///
    /// # Errors
    ///
    /// When the call fails. A missing exchange is no error.
    pub async fn delete_exchange(&self, name: &str) -> Result<(), Error> {
        let channel = self.channel().await?;
        let delete = channel.exchange_delete(short(name)?, ExchangeDeleteOptions::default());
        tolerate(call("deleting an exchange", delete).await)
    }

    /// Declares a queue, its dead-letter queue and its bindings. The exchanges must exist.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when one of the queues exists with other settings.
    pub async fn declare_queue(&self, queue: &Queue) -> Result<Declared, Error> {
        let is_new = self.ready_messages(&queue.name).await?.is_none();
        self.declare(&queue.dead_letters, &dead_letter_arguments()).await?;
        let (owned, is_patient) = self.declare_or_keep(queue).await?;
        // Without the right to declare a queue: the owner who declared it has bound it too.
        if owned {
            self.bind(queue).await?;
        }
        Ok(Declared { is_new, is_patient })
    }

    /// Declares a queue. If it exists without [`DISCONNECTED_LIMIT`], keeps it. Returns whether the login may
    /// declare it, and whether it has no such limit.
    pub(crate) async fn declare_or_keep(&self, queue: &Queue) -> Result<(bool, bool), Error> {
        match self.declare(&queue.name, &arguments(queue)).await {
            Ok(owned) => Ok((owned, false)),
            Err(error @ Error::Mismatch { .. }) => {
                let earlier = arguments_of_earlier_versions(queue);
                match self.declare(&queue.name, &earlier).await {
                    Ok(owned) => Ok((owned, true)),
                    Err(Error::Mismatch { .. }) => Err(error),
                    Err(other) => Err(other),
                }
            }
            Err(other) => Err(other),
        }
    }

    /// Declares the bindings of a queue, which must exist.
    ///
    /// # Errors
    ///
    /// When a call fails, or the login may not bind the queue.
    pub async fn bind(&self, queue: &Queue) -> Result<(), Error> {
        for binding in &queue.bindings {
            let channel = self.channel().await?;
            let bind = channel.queue_bind(
                short(&queue.name)?,
                short(&binding.exchange)?,
                short(&binding.key)?,
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            call("binding a queue", bind).await?;
        }
        Ok(())
    }

    /// How many messages of a queue are ready for delivery, without unsettled ones; `None` when the
    /// queue does not exist.
    ///
    /// # Errors
    ///
    /// When the call fails.
    pub async fn ready_messages(&self, queue: &str) -> Result<Option<u32>, Error> {
        Ok(self.look_up(queue).await?.map(|found| found.message_count()))
    }

    /// How many consumers a queue has; `None` when the queue does not exist.
    ///
    /// # Errors
    ///
    /// When the call fails.
    pub async fn consumers(&self, queue: &str) -> Result<Option<u32>, Error> {
        Ok(self.look_up(queue).await?.map(|found| found.consumer_count()))
    }

    pub(crate) async fn look_up(&self, queue: &str) -> Result<Option<lapin::Queue>, Error> {
        // The broker closes the channel if the queue is missing.
        let channel = self.check_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declare = channel.queue_declare(short(queue)?, options, FieldTable::default());
        match call_within(CHECK_LIMIT, "checking a queue", declare).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::NOTFOUND) => {
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Declares a queue. Returns false if the login may not declare it, but the queue exists.
    pub(crate) async fn declare(&self, name: &str, arguments: &FieldTable) -> Result<bool, Error> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions::durable();
        let declare = channel.queue_declare(short(name)?, options, arguments.clone());
        match call("declaring a queue", declare).await {
            Ok(_declared) => Ok(true),
            Err(Error::Call { operation, source })
                if is_soft(&source, AMQPSoftError::ACCESSREFUSED) =>
            {
                match self.look_up(name).await? {
                    Some(_) => Ok(false),
                    None => Err(Error::Call { operation, source }),
                }
            }
            Err(error) => Err(mismatch(&format!("queue {name}"), error)),
        }
    }
}

/// The result of [`Connection::declare_queue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared {
    /// Whether the queue is new, so that it lacks earlier messages.
    pub is_new: bool,
    /// Whether an earlier version declared the queue without a limit for disconnected consumers. Only a policy can
    /// add the limit, or a new queue.
    pub is_patient: bool,
}

pub(crate) fn dead_letter_arguments() -> FieldTable {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("quorum"));
    table
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut table = arguments_of_earlier_versions(queue);
    let limit = AMQPValue::LongLongInt(DISCONNECTED_LIMIT);
    table.insert("x-consumer-disconnected-timeout".into(), limit);
    table
}

fn arguments_of_earlier_versions(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in [
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&queue.dead_letters)),
        // at-least-once, so that a crash loses no dead letter; it requires reject-publish.
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ] {
        table.insert(key.into(), value);
    }
    table
}

/// Ignores that an object to be removed does not exist.
fn tolerate(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::NOTFOUND) => Ok(()),
        other => other,
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn mismatch(name: &str, error: Error) -> Error {
    match error {
        Error::Call { source, .. } if is_soft(&source, AMQPSoftError::PRECONDITIONFAILED) => {
            Error::Mismatch { name: name.to_owned(), reason: answer(&source) }
        }
        other => other,
    }
}
