//! Reads a dead-letter queue, and empties it message by message.

use domain_events::{HeaderValue, Message};
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation};
use tokio::time::timeout;

use crate::connection::{CLOSE_LIMIT, call, short};
use crate::{Connection, Error, properties};

/// The headers that [`Publisher::dead_letter`](crate::Publisher::dead_letter) adds.
const REASON: &str = "dead_letter_reason";
const QUEUE: &str = "dead_letter_queue";
const ROUTING_KEY: &str = "dead_letter_routing_key";
/// The headers of RabbitMQ, for a message that it dead-lettered itself.
const BROKER_REASON: &str = "x-first-death-reason";
const BROKER_QUEUE: &str = "x-first-death-queue";

/// A message of a dead-letter queue that is taken, and not settled yet.
#[derive(Debug)]
pub struct DeadLetter {
    /// The message.
    pub message: Message,
    received: BasicGetMessage,
}

impl DeadLetter {
    /// Why it is a dead letter.
    pub fn reason(&self) -> String {
        match (self.text(REASON), self.text(BROKER_REASON)) {
            (Some(reason), _) => reason.to_owned(),
            (None, Some(reason)) => format!("RabbitMQ dead-lettered it: {reason}"),
            (None, None) => "unknown: another program has published it to this queue".to_owned(),
        }
    }

    /// The queue from which it came, if known.
    pub fn queue(&self) -> Option<&str> {
        self.text(QUEUE).or_else(|| self.text(BROKER_QUEUE))
    }

    /// The routing key with which it was published, if known.
    pub fn routing_key(&self) -> Option<&str> {
        self.text(ROUTING_KEY)
    }

    fn text(&self, header: &str) -> Option<&str> {
        match self.message.headers.get(header) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// A dead-letter queue, on a channel of its own.
pub struct DeadLetters {
    channel: Channel,
    queue: String,
}

impl Connection {
    /// Opens a dead-letter queue.
    ///
    /// # Errors
    ///
    /// When the broker does not open the channel.
    pub async fn dead_letters(&self, queue: &str) -> Result<DeadLetters, Error> {
        let channel = self.channel().await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        call("enabling confirms", select).await?;
        Ok(DeadLetters { channel, queue: queue.to_owned() })
    }
}

impl DeadLetters {
    /// Takes the next message; `None` if there is none. A message that is not settled returns to the queue
    /// when the channel ends.
    ///
    /// # Errors
    ///
    /// When the call fails, or the queue does not exist.
    pub async fn take(&mut self) -> Result<Option<DeadLetter>, Error> {
        let get = self.channel.basic_get(short(&self.queue)?, BasicGetOptions::default());
        let received = call("reading a dead letter", get).await?;
        Ok(received.map(|received| {
            let (key, properties) = (&received.routing_key, &received.properties);
            let message = properties::message(key, properties, received.data.clone());
            DeadLetter { message, received }
        }))
    }

    /// Puts a message back, behind the others.
    ///
    /// It is published again, not returned: before RabbitMQ 4.3, a queue drops a message that was returned
    /// 20 times.
    ///
    /// # Errors
    ///
    /// When the broker does not confirm it. The message may then be in the queue twice.
    pub async fn keep(&mut self, letter: DeadLetter) -> Result<(), Error> {
        let (queue, reason, from) =
            (self.queue.clone(), letter.reason(), letter.queue().map(str::to_owned));
        let mut headers = letter.received.properties.headers().clone().unwrap_or_default();
        // RabbitMQ may drop its own headers from a message that a client publishes.
        headers.insert(REASON.into(), lapin::types::AMQPValue::LongString(reason.into()));
        if let Some(from) = from {
            headers.insert(QUEUE.into(), lapin::types::AMQPValue::LongString(from.into()));
        }
        self.move_to(&queue, letter, headers).await
    }

    /// Moves a message to another queue, without the headers that give the reason.
    ///
    /// # Errors
    ///
    /// When the broker does not confirm it. The message may then be in both queues.
    pub async fn replay(&mut self, letter: DeadLetter, queue: &str) -> Result<(), Error> {
        let of = letter.received.properties.headers().clone().unwrap_or_default();
        let mut headers = FieldTable::default();
        for (name, value) in of.inner() {
            if ![REASON, QUEUE, ROUTING_KEY].contains(&name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        self.move_to(queue, letter, headers).await
    }

    /// Deletes a message.
    ///
    /// # Errors
    ///
    /// When the call fails. The message may then be in the queue still.
    pub async fn discard(&mut self, letter: DeadLetter) -> Result<(), Error> {
        let tag = letter.received.delivery_tag;
        let ack = self.channel.basic_ack(tag, BasicAckOptions::default());
        call("deleting a dead letter", ack).await
    }

    /// Ends the channel, and waits up to 2 s for the answer. After an answer, the broker has processed
    /// everything that was sent before.
    pub async fn close(self) {
        drop(timeout(CLOSE_LIMIT, self.channel.close(200, "bye".into())).await);
    }

    async fn move_to(
        &mut self,
        queue: &str,
        letter: DeadLetter,
        headers: FieldTable,
    ) -> Result<(), Error> {
        let properties = letter.received.properties.clone().with_headers(headers);
        let (key, body) = (short(queue)?, &letter.received.data);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let publish = async {
            self.channel.basic_publish("".into(), key, options, body, properties).await?.await
        };
        match call("moving a dead letter", publish).await? {
            Confirmation::Ack(None) => self.discard(letter).await,
            _ => Err(Error::NotDeadLettered { queue: queue.to_owned() }),
        }
    }
}
