//! Publishes with confirms.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use domain_events::Message;
use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection};
use tokio::time::{Instant, timeout, timeout_at};

use crate::connection::{call, open_channel, short};
use crate::error::is_soft;
use crate::{Envelope, Error, properties};

/// How many messages lapin gets at once. One at a time would cost a switch between threads and a
/// system call for each message, three times the work of a chunk.
const CHUNK: usize = 256;
const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

/// What the broker did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every queue that its routing key leads to has it, and there is at least one.
    Confirmed,
    /// No queue is bound for its routing key.
    Returned,
    /// The broker rejected it, for example because a queue is full. Some queues may have it.
    Nacked,
    /// The broker closed the channel because of it, or would have. Contains the reason.
    Refused(String),
    /// It was not sent: the time of the batch was up.
    Untried,
}

/// Publishes to one exchange, on a channel of its own.
pub struct Publisher {
    connection: Arc<Connection>,
    channel: Channel,
    exchange: ShortString,
    app_id: ShortString,
    confirm_limit: Duration,
}

impl Publisher {
    pub(crate) async fn open(
        connection: Arc<Connection>,
        exchange: ShortString,
        app_id: ShortString,
        confirm_limit: Duration,
    ) -> Result<Self, Error> {
        let channel = confirming_channel(&connection).await?;
        Ok(Self { connection, channel, exchange, app_id, confirm_limit })
    }

    /// Publishes a batch in order, and waits until the broker has answered for each message. Returns
    /// one outcome per message, in the same order.
    ///
    /// # Errors
    ///
    /// When the connection fails or the deadline passes. Then the outcome of every message is unknown:
    /// confirms that have arrived may belong to returned messages, which is clear only after the last
    /// confirm.
    pub async fn publish<M>(&mut self, messages: &[M]) -> Result<Vec<Outcome>, Error>
    where
        M: Borrow<Message> + Sync,
    {
        let begun = Instant::now();
        let deadline = begun + self.confirm_limit;
        let frame = usize::try_from(self.connection.configuration().frame_max()).unwrap_or(0);
        let too_wide = |message: &Message| properties::header_bytes(message) > frame;
        if !messages.iter().any(|message| too_wide(message.borrow())) {
            match self.publish_together(messages, deadline).await {
                Err(error) if self.is_refusal(&error) => self.reopen(deadline).await?,
                other => return other,
            }
        }
        // One by one takes longer. After half of the time, the outcomes so far are returned: if a later
        // message exceeded the deadline, they would be lost.
        let enough = begun + self.confirm_limit / 2;
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            let message = message.borrow();
            outcomes.push(if !outcomes.is_empty() && Instant::now() >= enough {
                Outcome::Untried
            } else if too_wide(message) {
                Outcome::Refused(format!("its headers do not fit into a frame of {frame} bytes"))
            } else {
                self.publish_alone(message, deadline).await?
            });
        }
        Ok(outcomes)
    }

    /// Publishes one message. Used after the broker has refused a message of a batch: it closes the
    /// channel then, without naming the message.
    async fn publish_alone(
        &mut self,
        message: &Message,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        match self.publish_together(slice::from_ref(message), deadline).await {
            Ok(mut outcomes) => Ok(outcomes.pop().unwrap_or(Outcome::Untried)),
            Err(Error::Call { source, .. }) if blames_message(&source) => {
                self.reopen(deadline).await?;
                Ok(Outcome::Refused(source.to_string()))
            }
            Err(other) => Err(other),
        }
    }

    /// Whether the broker has closed the channel, but not the connection.
    fn is_refusal(&self, error: &Error) -> bool {
        matches!(error, Error::Call { .. })
            && !self.channel.status().connected()
            && self.connection.status().connected()
    }

    async fn reopen(&mut self, deadline: Instant) -> Result<(), Error> {
        let limit = self.confirm_limit;
        self.channel = timeout_at(deadline, confirming_channel(&self.connection))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "opening a channel", limit })??;
        Ok(())
    }

    async fn publish_together<M>(
        &self,
        messages: &[M],
        deadline: Instant,
    ) -> Result<Vec<Outcome>, Error>
    where
        M: Borrow<Message> + Sync,
    {
        let limit = self.confirm_limit;
        let confirmations = timeout_at(deadline, self.send(messages))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "publishing", limit })??;

        // lapin attaches a returned message to some later confirm, not to its own. So returned messages
        // are recognised by their ids, after the last confirm.
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
        let outcome = |(message, nacked): (&M, bool)| match &message.borrow().message_id {
            _ if nacked => Outcome::Nacked,
            Some(id) if returned.contains(id) => Outcome::Returned,
            _ => Outcome::Confirmed,
        };
        Ok(messages.iter().zip(nacked).map(outcome).collect())
    }

    /// Publishes a received message to a dead-letter queue, with headers that give the reason.
    ///
    /// # Errors
    ///
    /// When the broker does not confirm it.
    pub async fn dead_letter(
        &mut self,
        queue: &str,
        envelope: &Envelope,
        body: &[u8],
        reason: &str,
    ) -> Result<(), Error> {
        let key = short(queue)?;
        // 4 KiB remain for the other properties and the reason.
        let frame = usize::try_from(self.connection.configuration().frame_max()).unwrap_or(0);
        let properties = envelope.dead_letter_properties(reason, frame.saturating_sub(4096));
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

    async fn send<M>(&self, messages: &[M]) -> Result<Vec<Confirmation>, Error>
    where
        M: Borrow<Message> + Sync,
    {
        let failed = |source| Error::Call { operation: "publishing", source };
        let mut outstanding = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(CHUNK) {
            let mut publishes = Vec::with_capacity(chunk.len());
            for message in chunk.iter().map(M::borrow) {
                publishes.push(self.channel.basic_publish(
                    self.exchange.clone(),
                    short(&message.routing_key)?,
                    MANDATORY,
                    &message.body,
                    properties::of(message, &self.app_id),
                ));
            }
            outstanding.extend(try_join_all(publishes).await.map_err(failed)?);
        }
        // Awaiting one after another loses no time: confirms arrive unrequested. If the channel fails, all
        // of them fail.
        let mut confirmations = Vec::with_capacity(outstanding.len());
        for confirm in outstanding {
            confirmations.push(confirm.await.map_err(failed)?);
        }
        Ok(confirmations)
    }
}

/// Whether the broker has closed the channel because of the message, not because of the exchange: it
/// cannot accept the message, or the user may not write to its routing key.
fn blames_message(error: &lapin::Error) -> bool {
    is_soft(error, AMQPSoftError::PRECONDITIONFAILED)
        || (is_soft(error, AMQPSoftError::ACCESSREFUSED) && error.to_string().contains("to topic"))
}

async fn confirming_channel(connection: &Connection) -> Result<Channel, Error> {
    let channel = open_channel(connection).await?;
    let select = channel.confirm_select(ConfirmSelectOptions::default());
    call("enabling confirms", select).await?;
    Ok(channel)
}
