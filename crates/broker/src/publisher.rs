//! Publishing with confirms.

use std::collections::HashSet;
use std::time::Duration;

use domain_events::Message;
use futures_util::future::try_join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::time::timeout;

use crate::connection::short;
use crate::{Envelope, Error, properties};

/// Messages handed to lapin at once. One at a time costs a hand-over between threads and a system
/// call for each message, three times the work of a chunk.
const CHUNK: usize = 256;
const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

/// What the broker did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in every queue that its routing key leads to, and there is at least one.
    Confirmed,
    /// No queue is bound for its routing key.
    Returned,
    /// The broker refused it, for example because a queue is full; some queues may have it.
    Nacked,
}

/// Publishes to one exchange, on a channel that nobody else uses.
pub struct Publisher {
    channel: Channel,
    exchange: ShortString,
    app_id: ShortString,
    confirm_limit: Duration,
}

impl Publisher {
    pub(crate) fn new(channel: Channel, exchange: ShortString, confirm_limit: Duration) -> Self {
        Self { channel, exchange, app_id: "outbox-relay".into(), confirm_limit }
    }

    /// Publishes a batch in order and waits until the broker has answered for each message.
    ///
    /// # Errors
    ///
    /// When the connection fails or the deadline passes. Then nothing is known of any message: which
    /// of the answers so far belongs to a returned message shows only when all are in.
    pub async fn publish(&mut self, messages: &[Message]) -> Result<Vec<Outcome>, Error> {
        let limit = self.confirm_limit;
        let confirmations = timeout(limit, self.send(messages))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "publishing", limit })??;

        // lapin attaches a returned message to any confirm that comes after it, so a returned
        // message is known by its id alone, and only now.
        let mut returned = HashSet::new();
        let mut nacked = Vec::with_capacity(messages.len());
        for confirmation in confirmations {
            nacked.push(!confirmation.is_ack());
            if let Some(message) = confirmation.take_message()
                && let Some(id) = message.properties.message_id()
            {
                returned.insert(id.as_str().to_owned());
            }
        }
        let outcome = |(message, nacked): (&Message, bool)| match &message.message_id {
            _ if nacked => Outcome::Nacked,
            Some(id) if returned.contains(id) => Outcome::Returned,
            _ => Outcome::Confirmed,
        };
        Ok(messages.iter().zip(nacked).map(outcome).collect())
    }

    /// Puts a message that was received, with headers that say why, into a dead-letter queue.
    ///
    /// # Errors
    ///
    /// When the broker does not confirm that the queue has it.
    pub async fn dead_letter(
        &mut self,
        queue: &str,
        envelope: &Envelope,
        body: &[u8],
        reason: &str,
    ) -> Result<(), Error> {
        let key = short(queue)?;
        let properties = envelope.dead_letter_properties(reason);
        let limit = self.confirm_limit;
        let send = async {
            let publish =
                self.channel.basic_publish("".into(), key, MANDATORY, body, properties).await?;
            publish.await
        };
        let confirmation = timeout(limit, send)
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "dead-lettering", limit })?
            .map_err(|source| Error::Call { operation: "dead-lettering", source })?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            _ => Err(Error::NotDeadLettered { queue: queue.to_owned() }),
        }
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Confirmation>, Error> {
        let failed = |source| Error::Call { operation: "publishing", source };
        let mut confirms = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(CHUNK) {
            let mut publishes = Vec::with_capacity(chunk.len());
            for message in chunk {
                publishes.push(self.channel.basic_publish(
                    self.exchange.clone(),
                    short(&message.routing_key)?,
                    MANDATORY,
                    &message.body,
                    properties::of(message, &self.app_id),
                ));
            }
            confirms.extend(try_join_all(publishes).await.map_err(failed)?);
        }
        try_join_all(confirms).await.map_err(failed)
    }
}
