//! Publishes with confirms.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use domain_events::Message;
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection, PublisherConfirm};
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
    /// It was not sent, because the time of the batch was up; or it was sent, and the broker's answer did
    /// not arrive.
    Unanswered,
}

/// A failure in the middle of a batch. The connection must be dropped.
#[derive(Debug)]
pub struct Interrupted {
    /// One outcome per message, in the order of the batch. Confirms that arrived before the failure count.
    pub outcomes: Vec<Outcome>,
    /// The failure.
    pub error: Error,
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
    /// When the connection fails or the deadline passes, with the outcomes that are known by then.
    pub async fn publish<M>(&mut self, messages: &[M]) -> Result<Vec<Outcome>, Interrupted>
    where
        M: Borrow<Message> + Sync,
    {
        let begun = Instant::now();
        let deadline = begun + self.confirm_limit;
        let frame = usize::try_from(self.connection.configuration().frame_max()).unwrap_or(0);
        let too_wide = |message: &Message| properties::header_bytes(message) > frame;
        if !messages.iter().any(|message| too_wide(message.borrow())) {
            match self.publish_together(messages, deadline).await {
                Err(Interrupted { error, .. }) if self.is_refusal(&error) => {
                    self.reopen(deadline)
                        .await
                        .map_err(|error| interrupted(Vec::new(), messages, error))?;
                }
                other => return other,
            }
        }
        // One by one takes longer. After half of the time, the outcomes so far are returned: if a later
        // message exceeded the deadline, they would be lost.
        let enough = begun + self.confirm_limit / 2;
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            let message = message.borrow();
            if !outcomes.is_empty() && Instant::now() >= enough {
                outcomes.push(Outcome::Unanswered);
            } else if too_wide(message) {
                let reason = format!("its headers do not fit into a frame of {frame} bytes");
                outcomes.push(Outcome::Refused(reason));
            } else {
                match self.publish_alone(message, deadline).await {
                    Ok(outcome) => outcomes.push(outcome),
                    Err(error) => return Err(interrupted(outcomes, messages, error)),
                }
            }
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
            Ok(mut outcomes) => Ok(outcomes.pop().unwrap_or(Outcome::Unanswered)),
            Err(Interrupted { error: Error::Call { source, .. }, .. })
                if blames_message(&source) =>
            {
                self.reopen(deadline).await?;
                Ok(Outcome::Refused(source.to_string()))
            }
            Err(other) => Err(other.error),
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
    ) -> Result<Vec<Outcome>, Interrupted>
    where
        M: Borrow<Message> + Sync,
    {
        let limit = self.confirm_limit;
        let mut outstanding = Vec::with_capacity(messages.len());
        let mut answers = Vec::with_capacity(messages.len());
        let exchange = async {
            self.send(messages, &mut outstanding).await?;
            // Awaiting one after another loses no time: confirms arrive unrequested. If the channel fails,
            // all of them fail.
            for confirm in &mut outstanding {
                answers.push(Some(confirm.await.map_err(failed)?));
            }
            Ok(())
        };
        let error = match timeout_at(deadline, exchange).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_elapsed) => Some(Error::Timeout { operation: "publishing", limit }),
        };

        // lapin attaches a returned message to some confirm, not to its own. So returned messages are
        // recognised by their ids, after the last confirm.
        let mut returned = HashSet::new();
        if error.is_some() {
            for confirm in outstanding.iter_mut().skip(answers.len()) {
                answers.push(confirm.now_or_never().and_then(Result::ok));
            }
            self.settle_confirms();
            for confirm in &mut outstanding {
                if let Some(Ok(late)) = confirm.now_or_never() {
                    returned.extend(returned_id(late));
                }
            }
        }
        let outcomes = outcomes(messages, answers, returned, error.is_none());
        match error {
            None => Ok(outcomes),
            Some(error) => Err(Interrupted { outcomes, error }),
        }
    }

    /// Waits until lapin has distributed the confirms that it is distributing now: one frame can confirm
    /// many messages, and the return of one may be attached to another.
    fn settle_confirms(&self) {
        #[expect(
            clippy::disallowed_methods,
            reason = "only for the lock that its first poll takes"
        )]
        let _pending = self.channel.wait_for_confirms().now_or_never();
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

    /// Sends messages, and adds a confirm to `outstanding` for each.
    async fn send<M>(
        &self,
        messages: &[M],
        outstanding: &mut Vec<PublisherConfirm>,
    ) -> Result<(), Error>
    where
        M: Borrow<Message> + Sync,
    {
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
        Ok(())
    }
}

/// The outcomes of a batch by its answers, in order, and the ids that were returned besides. `is_whole` means that
/// every answer has arrived.
fn outcomes<M: Borrow<Message>>(
    messages: &[M],
    answers: Vec<Option<Confirmation>>,
    mut returned: HashSet<String>,
    is_whole: bool,
) -> Vec<Outcome> {
    let mut confirmed = Vec::with_capacity(messages.len());
    for answer in answers {
        confirmed.push(answer.as_ref().map(Confirmation::is_ack));
        returned.extend(answer.and_then(returned_id));
    }
    confirmed.resize(messages.len(), None);
    // A confirm whose return has arrived carries a return, its own or an earlier one. So while no return was
    // seen, every confirmed message has a queue. After the first, that is known only at the end of the batch.
    let is_doubtful = !is_whole && !returned.is_empty();
    let outcome = |(message, confirmed): (&M, Option<bool>)| {
        let id = &message.borrow().message_id;
        let is_returned = id.as_ref().is_some_and(|id| returned.contains(id));
        match confirmed {
            None => Outcome::Unanswered,
            Some(false) => Outcome::Nacked,
            Some(true) if is_returned => Outcome::Returned,
            Some(true) if is_doubtful => Outcome::Unanswered,
            Some(true) => Outcome::Confirmed,
        }
    };
    messages.iter().zip(confirmed).map(outcome).collect()
}

fn failed(source: lapin::Error) -> Error {
    Error::Call { operation: "publishing", source }
}

/// The failure of a batch of which only the first outcomes are known.
fn interrupted<M>(mut outcomes: Vec<Outcome>, messages: &[M], error: Error) -> Interrupted {
    outcomes.resize(messages.len(), Outcome::Unanswered);
    Interrupted { outcomes, error }
}

/// The id of the returned message that a confirm carries.
fn returned_id(confirmation: Confirmation) -> Option<String> {
    let message = confirmation.take_message()?;
    message.properties.message_id().as_ref().map(|id| id.as_str().to_owned())
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
