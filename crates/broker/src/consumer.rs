//! Consumes a queue.

use std::collections::BTreeSet;
use std::time::Duration;

use domain_events::Message;
use futures_util::future::try_join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as Received;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, DeliveryTag, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::time::{sleep, timeout};

use crate::connection::{CHECK_LIMIT, CLOSE_LIMIT, call, call_within, short};
use crate::error::is_soft;
use crate::{Error, properties};

/// How many checks in a row must find the queue of an ended consumer.
const END_CHECKS: u32 = 5;
/// The pause after each of them.
const END_PAUSE: Duration = Duration::from_millis(100);

/// A received message that is not settled yet.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// What is needed to settle or dead-letter it.
    pub envelope: Envelope,
}

/// A delivery without its message: what is needed to settle or dead-letter it.
#[derive(Debug)]
pub struct Envelope {
    queue: String,
    routing_key: String,
    properties: BasicProperties,
    receipt: Receipt,
}

/// The right to settle one delivery, once.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt(DeliveryTag);

impl Envelope {
    /// The right to settle the delivery.
    pub fn into_receipt(self) -> Receipt {
        self.receipt
    }

    /// The properties of the message as a dead letter, with headers that give the reason.
    ///
    /// Omits the properties that would make the broker refuse, reroute or expire the message, and all
    /// original headers if they have more than `room` bytes.
    pub(crate) fn dead_letter_properties(&self, reason: &str, room: usize) -> BasicProperties {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        let original = self.properties.headers().iter().flat_map(FieldTable::inner);
        for (name, value) in original {
            if !matches!(name.as_str(), "CC" | "BCC") {
                headers.insert(name.clone(), value.clone());
            }
        }
        if headers.inner().iter().map(header_bytes).sum::<usize>() > room {
            headers = FieldTable::default();
        }
        headers.insert("dead_letter_reason".into(), text(reason));
        headers.insert("dead_letter_queue".into(), text(&self.queue));
        headers.insert("dead_letter_routing_key".into(), text(&self.routing_key));
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        let of = &self.properties;
        if let Some(id) = of.message_id() {
            properties = properties.with_message_id(id.clone());
        }
        if let Some(kind) = of.kind() {
            properties = properties.with_type(kind.clone());
        }
        if let Some(content_type) = of.content_type() {
            properties = properties.with_content_type(content_type.clone());
        }
        if let Some(encoding) = of.content_encoding() {
            properties = properties.with_content_encoding(encoding.clone());
        }
        if let Some(correlation_id) = of.correlation_id() {
            properties = properties.with_correlation_id(correlation_id.clone());
        }
        if let Some(app_id) = of.app_id() {
            properties = properties.with_app_id(app_id.clone());
        }
        if let Some(timestamp) = of.timestamp() {
            properties = properties.with_timestamp(*timestamp);
        }
        properties
    }
}

fn header_bytes((name, value): (&ShortString, &AMQPValue)) -> usize {
    let value = match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        // Counted as too large: an event never has such a header.
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::ByteArray(_) => 1 << 20,
        _ => 16,
    };
    name.as_str().len() + value + 6
}

/// Consumes one queue, on a channel of its own.
pub struct Consumer {
    channel: Channel,
    deliveries: lapin::Consumer,
    queue: String,
    unsettled: BTreeSet<DeliveryTag>,
    /// Whether the broker has ended the consumer. lapin says so only once.
    ended: bool,
}

impl Consumer {
    pub(crate) async fn start(channel: Channel, queue: &str, prefetch: u16) -> Result<Self, Error> {
        // Before consuming, because the limit does not apply to deliveries already on their way.
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        call("setting the prefetch", qos).await?;
        // No priority: a consumer with a higher one than an active consumer on a dead node leaves a queue of
        // RabbitMQ 4.3 without an active consumer for good.
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consume = channel.basic_consume(short(queue)?, "".into(), options, arguments);
        let deliveries = call("consuming", consume).await?;
        let queue = queue.to_owned();
        Ok(Self { channel, deliveries, queue, unsettled: BTreeSet::new(), ended: false })
    }

    /// Waits for a delivery. Returns it with further ones that have arrived, at most `max` in all.
    ///
    /// # Errors
    ///
    /// When the connection failed. When the broker ended the consumer: [`Error::QueueDeleted`] or
    /// [`Error::Cancelled`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no delivery.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, Error> {
        let mut batch = Vec::new();
        if !self.ended {
            let first = self.deliveries.next().await;
            self.take(first, &mut batch)?;
        }
        while batch.len() < max && !self.ended {
            let Some(next) = self.deliveries.next().now_or_never() else { break };
            self.take(next, &mut batch)?;
        }
        if batch.is_empty() { Err(self.end().await) } else { Ok(batch) }
    }

    /// Why the broker ended the consumer. It gives no reason, but the channel stays open, so the queue can be
    /// looked up.
    async fn end(&self) -> Error {
        // A queue still exists for a moment after its deletion has ended the consumers.
        for _ in 0..END_CHECKS {
            match self.exists().await {
                Ok(true) => sleep(END_PAUSE).await,
                Ok(false) => return Error::QueueDeleted { queue: self.queue.clone() },
                Err(error) => return error,
            }
        }
        Error::Cancelled { queue: self.queue.clone() }
    }

    async fn exists(&self) -> Result<bool, Error> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declare =
            self.channel.queue_declare(short(&self.queue)?, options, FieldTable::default());
        match call_within(CHECK_LIMIT, "checking a queue", declare).await {
            Ok(_exists) => Ok(true),
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::NOTFOUND) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The number of deliveries that are not settled yet.
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// Acknowledges deliveries, so that the broker deletes the messages.
    ///
    /// # Errors
    ///
    /// When the call fails. The broker then redelivers the messages.
    pub async fn ack(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        let (multiple, single) = self.settle(receipts);
        if let Some(tag) = multiple {
            let options = BasicAckOptions { multiple: true };
            call("acknowledging", self.channel.basic_ack(tag, options)).await?;
        }
        let options = BasicAckOptions { multiple: false };
        let acks = single.into_iter().map(|tag| self.channel.basic_ack(tag, options));
        call("acknowledging", try_join_all(acks)).await.map(drop)
    }

    /// Ends the consumer, and waits up to 2 s for the answer. Unsettled deliveries return to the queue.
    pub async fn close(self) {
        // Without an answer, the channel ends with the connection.
        drop(timeout(CLOSE_LIMIT, self.channel.close(200, "bye".into())).await);
    }

    /// Returns deliveries to the queue, to be redelivered.
    ///
    /// # Errors
    ///
    /// When the call fails. The broker then redelivers the messages when the connection ends.
    pub async fn give_back(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        let (multiple, single) = self.settle(receipts);
        if let Some(tag) = multiple {
            let options = BasicNackOptions { multiple: true, requeue: true };
            call("requeueing", self.channel.basic_nack(tag, options)).await?;
        }
        let options = BasicNackOptions { multiple: false, requeue: true };
        let nacks = single.into_iter().map(|tag| self.channel.basic_nack(tag, options));
        call("requeueing", try_join_all(nacks)).await.map(drop)
    }

    fn take(
        &mut self,
        received: Option<lapin::Result<Received>>,
        batch: &mut Vec<Delivery>,
    ) -> Result<(), Error> {
        let Some(received) = received else {
            self.ended = true;
            return Ok(());
        };
        let received = received.map_err(|source| Error::Call { operation: "consuming", source })?;
        self.unsettled.insert(received.delivery_tag);
        let message =
            properties::message(&received.routing_key, &received.properties, received.data);
        let envelope = Envelope {
            queue: self.queue.clone(),
            routing_key: message.routing_key.clone(),
            properties: received.properties,
            receipt: Receipt(received.delivery_tag),
        };
        batch.push(Delivery { message, envelope });
        Ok(())
    }

    /// Marks receipts as settled. Returns the last tag of those that form the oldest unsettled
    /// deliveries without a gap, which one call with `multiple` settles, and the tags of the others.
    fn settle(&mut self, receipts: Vec<Receipt>) -> (Option<DeliveryTag>, Vec<DeliveryTag>) {
        let mut single: BTreeSet<DeliveryTag> =
            receipts.into_iter().map(|receipt| receipt.0).collect();
        let mut multiple = None;
        while let (Some(oldest), Some(next)) = (self.unsettled.first(), single.first())
            && oldest == next
        {
            multiple = self.unsettled.pop_first();
            single.pop_first();
        }
        for tag in &single {
            self.unsettled.remove(tag);
        }
        (multiple, single.into_iter().collect())
    }
}
