//! Consuming a queue.

use std::collections::BTreeSet;

use domain_events::Message;
use futures_util::future::try_join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as Received;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, DeliveryTag, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::time::timeout;

use crate::connection::{CLOSE_LIMIT, call, short};
use crate::{Error, properties};

/// A message received and not settled yet.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// What is needed to settle it.
    pub envelope: Envelope,
}

/// A delivery without its body: what is needed to settle it.
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

    /// The properties of the message, with the reason why it is a dead letter.
    ///
    /// Without those that would make the broker refuse it, send it elsewhere or forget it; and
    /// without its headers when they have more bytes than there is room for.
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
        // However large they are; nobody needs them to read the message.
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::ByteArray(_) => 1 << 20,
        _ => 16,
    };
    name.as_str().len() + value + 6
}

/// Consumes one queue, on a channel that nobody else uses.
pub struct Consumer {
    channel: Channel,
    deliveries: lapin::Consumer,
    queue: String,
    unsettled: BTreeSet<DeliveryTag>,
}

impl Consumer {
    pub(crate) async fn start(
        channel: Channel,
        queue: &str,
        prefetch: u16,
        priority: i32,
    ) -> Result<Self, Error> {
        // Before consuming: what is on its way already would not be limited.
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        call("limiting the prefetch", qos).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(short(queue)?, "".into(), options, arguments);
        let deliveries = call("consuming", consume).await?;
        let queue = queue.to_owned();
        Ok(Self { channel, deliveries, queue, unsettled: BTreeSet::new() })
    }

    /// Waits for a delivery, then takes those that have arrived as well, at most `max`.
    ///
    /// # Errors
    ///
    /// When the connection failed, or the broker cancelled the consumer: lapin then just ends the
    /// stream, while channel and connection stay up.
    ///
    /// # Cancel safety
    ///
    /// Safe: no delivery is lost when the future is dropped.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, Error> {
        let mut batch = Vec::new();
        let first = self.deliveries.next().await;
        self.take(first, &mut batch)?;
        while batch.len() < max {
            let Some(next) = self.deliveries.next().now_or_never() else { break };
            self.take(next, &mut batch)?;
        }
        Ok(batch)
    }

    /// Whether a delivery is not settled yet.
    pub fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Tells the broker that messages are done with and can be forgotten.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told; it then delivers them again.
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

    /// Ends the consumer. What is not settled goes back to the queue. Gives up waiting after 2 s.
    pub async fn close(self) {
        // Whatever the answer, the channel is gone; with the connection at the latest.
        drop(timeout(CLOSE_LIMIT, self.channel.close(200, "bye".into())).await);
    }

    /// Gives messages back to the queue, to be delivered again.
    ///
    /// # Errors
    ///
    /// When the broker cannot be told; it then delivers them again when the connection ends.
    pub async fn give_back(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        let (multiple, single) = self.settle(receipts);
        if let Some(tag) = multiple {
            let options = BasicNackOptions { multiple: true, requeue: true };
            call("giving messages back", self.channel.basic_nack(tag, options)).await?;
        }
        let options = BasicNackOptions { multiple: false, requeue: true };
        let nacks = single.into_iter().map(|tag| self.channel.basic_nack(tag, options));
        call("giving messages back", try_join_all(nacks)).await.map(drop)
    }

    fn take(
        &mut self,
        received: Option<lapin::Result<Received>>,
        batch: &mut Vec<Delivery>,
    ) -> Result<(), Error> {
        let received = received
            .ok_or_else(|| Error::Cancelled { queue: self.queue.clone() })?
            .map_err(|source| Error::Call { operation: "consuming", source })?;
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

    /// Splits receipts into the oldest run without a gap, which the broker can be told of at once,
    /// and the rest.
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
