//! Exchanges, queues and bindings.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongLongInt};
use tokio::time::sleep;

use crate::connection::{LOOK_LIMIT, call, call_within, short};
use crate::error::{is_hard, is_soft};
use crate::{Connection, Error};

/// Deliveries of one message before the broker itself dead-letters it.
///
/// High, because a crash counts against every unsettled message, and twenty crashes in a row must
/// not empty a healthy queue.
const DELIVERY_LIMIT: LongLongInt = 1_000;

/// Looks in a row that must find a queue empty. RabbitMQ says 0 too when the leader of a quorum queue does
/// not answer within 250 ms.
const EMPTY_LOOKS: u32 = 3;
/// How long before each look.
const EMPTY_PAUSE: Duration = Duration::from_millis(300);

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
    /// A topic exchange, or one that hashes.
    pub exchange: String,
    /// The pattern of routing keys; for an exchange that hashes, the weight.
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

    /// Makes sure that a durable exchange exists that spreads messages over its queues by a hash of a
    /// header: each value of the header always goes to the same queue. It gets what a topic exchange
    /// has for some keys.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it exists as something else, [`Error::Plugin`] when the broker does
    /// not know such exchanges.
    pub async fn declare_hash_exchange(
        &self,
        name: &str,
        header: &str,
        source: &str,
        keys: &[String],
    ) -> Result<(), Error> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("hash-header".into(), text(header));
        let kind = ExchangeKind::Custom("x-consistent-hash".to_owned());
        let declare = channel.exchange_declare(short(name)?, kind, options, arguments);
        match call("declaring an exchange", declare).await {
            Ok(()) => {}
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::ACCESSREFUSED) => {
                return Ok(());
            }
            Err(Error::Call { source, .. }) if is_hard(&source, AMQPHardError::COMMANDINVALID) => {
                return Err(Error::Plugin { source });
            }
            Err(error) => return Err(mismatch(&format!("exchange {name}"), error)),
        }
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

    /// Lets nothing more into an exchange that hashes; its queues keep what they have.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told.
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

    /// Takes bindings away from a queue.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told.
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

    /// Deletes a queue, unless it has messages, or somebody consumes it and may have some.
    ///
    /// # Errors
    ///
    /// When it has some.
    pub async fn delete_empty_queue(&self, name: &str) -> Result<(), Error> {
        // Quorum queues know neither if_empty nor if_unused.
        for _ in 0..EMPTY_LOOKS {
            // Who just left is gone then.
            sleep(EMPTY_PAUSE).await;
            let Some(found) = self.look_up(name).await? else { return Ok(()) };
            if found.message_count() > 0 || found.consumer_count() > 0 {
                return Err(Error::NotEmpty { queue: name.to_owned() });
            }
        }
        self.delete_queue(name).await
    }

    /// Deletes a queue with what is in it.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told, or we may not.
    pub async fn delete_queue(&self, name: &str) -> Result<(), Error> {
        let channel = self.channel().await?;
        let delete = channel.queue_delete(short(name)?, QueueDeleteOptions::default());
        tolerate(call("deleting a queue", delete).await.map(drop))
    }

    /// Deletes an exchange.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told.
    pub async fn delete_exchange(&self, name: &str) -> Result<(), Error> {
        let channel = self.channel().await?;
        let delete = channel.exchange_delete(short(name)?, ExchangeDeleteOptions::default());
        tolerate(call("deleting an exchange", delete).await)
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
        self.declare(&queue.dead_letters, &dead_letter_arguments()).await?;
        if !self.declare(&queue.name, &arguments(queue)).await? {
            // Without the right to declare it, who has it has bound it too.
            return Ok(new);
        }
        self.bind(queue).await?;
        Ok(new)
    }

    /// Makes sure of the bindings of a queue, which must exist.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told, or we may not.
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

    /// What a queue and its dead-letter queue lack to be as they must.
    ///
    /// AMQP does not tell of bindings; declaring the queue makes them.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked.
    pub async fn compare_queue(&self, queue: &Queue) -> Result<Vec<Difference>, Error> {
        let mut differences = Vec::new();
        let wanted =
            [(&queue.dead_letters, dead_letter_arguments()), (&queue.name, arguments(queue))];
        for (name, arguments) in wanted {
            let Some(found) = self.look_up(name).await? else {
                differences.push(Difference::Missing { queue: name.clone() });
                continue;
            };
            match self.declare(name, &arguments).await {
                Ok(_declared) => {}
                Err(Error::Mismatch { source, .. }) => {
                    let reason = source.to_string();
                    differences.push(Difference::Other { queue: name.clone(), reason });
                }
                Err(error) => return Err(error),
            }
            if *name == queue.name && found.consumer_count() == 0 {
                differences.push(Difference::NoConsumer { queue: name.clone() });
            }
        }
        Ok(differences)
    }

    /// How many messages wait in a queue, not counting those that a consumer has; `None` when there
    /// is no such queue.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked.
    pub async fn ready_messages(&self, queue: &str) -> Result<Option<u32>, Error> {
        Ok(self.look_up(queue).await?.map(|found| found.message_count()))
    }

    async fn look_up(&self, queue: &str) -> Result<Option<lapin::Queue>, Error> {
        // A missing queue costs the channel.
        let channel = self.look_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declare = channel.queue_declare(short(queue)?, options, FieldTable::default());
        match call_within(LOOK_LIMIT, "looking for a queue", declare).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::NOTFOUND) => {
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Says whether we may; without the right, it is enough that it is there.
    async fn declare(&self, name: &str, arguments: &FieldTable) -> Result<bool, Error> {
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

/// What differs between a queue and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    Missing {
        /// The queue.
        queue: String,
    },
    /// It has other settings.
    Other {
        /// The queue.
        queue: String,
        /// What the broker says.
        reason: String,
    },
    /// Nobody consumes it.
    NoConsumer {
        /// The queue.
        queue: String,
    },
}

fn dead_letter_arguments() -> FieldTable {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("quorum"));
    table
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in [
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&queue.dead_letters)),
        // Both are needed for dead letters that survive a crash on their way.
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ] {
        table.insert(key.into(), value);
    }
    table
}

/// Something that is not there needs no removing.
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
            Error::Mismatch { name: name.to_owned(), source }
        }
        other => other,
    }
}
