//! What happens to each event of a batch. No other place decides it.

use std::collections::HashSet;
use std::time::Duration;

use broker::{Outcome, TopicPattern};
use daemon::backoff::Backoff;
use event_store::{Hold, Lane, OutboxId, Reason, Settlement};

/// The outbox row of an event, without its message.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) id: OutboxId,
    pub(crate) lane: Lane,
    pub(crate) stream_key: String,
    pub(crate) routing_key: String,
    /// How often the event that holds this stream has failed; `None` when the stream is not held.
    pub(crate) attempts: Option<u32>,
}

/// How the attempt to publish an event ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The broker confirmed it.
    Confirmed,
    /// No queue is bound for it, and `relay.discard_unroutable` allows that.
    Discarded,
    /// No queue is bound for it.
    Returned,
    /// The broker cannot take it now, for example because a queue is full.
    Nacked,
    /// Not sent: it is too large.
    TooLarge { bytes: u64, limit: u64 },
    /// Not sent: its row is not a valid event.
    Malformed { reason: String },
    /// The broker closed the channel because of it.
    Refused { reason: String },
    /// Not sent: an earlier event of its stream failed.
    AfterFailed,
    /// Not sent, or sent without an answer from the broker.
    Unanswered,
}

/// An event of a batch, with its fate.
#[derive(Debug, Clone)]
pub(crate) struct EventFate {
    pub(crate) slot: Slot,
    pub(crate) fate: Fate,
}

/// How failures are handled.
#[derive(Debug, Clone)]
pub(crate) struct FailurePolicy {
    /// The shortest wait before a stream is retried.
    pub(crate) retry_min: Duration,
    /// The longest wait.
    pub(crate) retry_max: Duration,
    /// How often an event that itself causes the failure is tried before its stream is parked.
    pub(crate) max_attempts: u32,
    /// Routing keys that need no queue.
    pub(crate) discard_unroutable: Vec<TopicPattern>,
    /// Whether published rows are deleted at once.
    pub(crate) delete: bool,
}

/// Why an event was not published.
struct Failure {
    reason: Reason,
    text: String,
    /// How often it is tried before its stream is parked.
    attempts: Attempts,
}

/// How often an event is tried.
enum Attempts {
    /// Without limit: the cause is outside of the event.
    Unlimited,
    /// `relay.max_attempts` times: the event itself is the cause.
    Limited,
    /// Once: only a change of the row can help.
    One,
}

impl Fate {
    /// Interprets the broker's answer.
    pub(crate) fn of(outcome: Outcome, routing_key: &str, policy: &FailurePolicy) -> Self {
        match outcome {
            Outcome::Confirmed => Self::Confirmed,
            Outcome::Returned
                if policy.discard_unroutable.iter().any(|key| key.matches(routing_key)) =>
            {
                Self::Discarded
            }
            Outcome::Returned => Self::Returned,
            Outcome::Nacked => Self::Nacked,
            Outcome::Refused(reason) => Self::Refused { reason },
            Outcome::Unanswered => Self::Unanswered,
        }
    }

    /// The metric label that counts it; `None` for an event that was not tried.
    pub(crate) fn label(&self) -> Option<&'static str> {
        match self {
            Self::Confirmed => Some("confirmed"),
            Self::Discarded => Some("discarded"),
            Self::Returned => Some("returned"),
            Self::Nacked => Some("nacked"),
            Self::TooLarge { .. } => Some("too_large"),
            Self::Malformed { .. } => Some("malformed"),
            Self::Refused { .. } => Some("refused"),
            Self::AfterFailed | Self::Unanswered => None,
        }
    }

    fn failure(&self, slot: &Slot) -> Option<Failure> {
        let key = &slot.routing_key;
        let (reason, attempts, text) = match self {
            Self::Confirmed | Self::Discarded | Self::AfterFailed | Self::Unanswered => {
                return None;
            }
            Self::Returned => (
                Reason::Unroutable,
                Attempts::Unlimited,
                format!(
                    "no queue is bound for routing key {key}: bind one to the exchange, \
                     for example by starting the projector that should receive the event"
                ),
            ),
            Self::Nacked => (
                Reason::Nacked,
                Attempts::Unlimited,
                format!(
                    "RabbitMQ rejected the message with routing key {key}: \
                     check whether one of its queues is full"
                ),
            ),
            Self::TooLarge { bytes, limit } => (
                Reason::TooLarge,
                Attempts::Limited,
                format!(
                    "the event has {bytes} bytes, and {limit} are allowed: raise \
                     relay.max_message_bytes (and the broker's max_message_size), or skip the event"
                ),
            ),
            Self::Malformed { reason } => (
                Reason::Malformed,
                Attempts::One,
                format!(
                    "the row is not a valid event: {reason}; correct the row and retry, or skip it"
                ),
            ),
            Self::Refused { reason } => (
                Reason::Refused,
                Attempts::Limited,
                format!("RabbitMQ refused the message: {reason}"),
            ),
        };
        Some(Failure { reason, text, attempts })
    }
}

/// Decides what to record for a batch whose events are in order.
///
/// If an event of a stream fails, it and all later events of the stream are set aside, even those
/// that were confirmed: they will be published again, so that the last copies on the wire are in
/// order. From the first unanswered event of a stream on, its rows stay as they are.
/// `part` gives random numbers from 0 to 1.
pub(crate) fn settle(
    events: &[EventFate],
    policy: &FailurePolicy,
    mut part: impl FnMut() -> f64,
) -> Settlement {
    let mut settlement = Settlement { delete: policy.delete, ..Settlement::default() };
    let mut failed: HashSet<&str> = HashSet::new();
    let mut unanswered: HashSet<&str> = HashSet::new();
    let backoff = Backoff::new(policy.retry_min, policy.retry_max);
    for EventFate { slot, fate } in events {
        let stream_key = slot.stream_key.as_str();
        let is_unanswered = matches!(fate, Fate::Unanswered | Fate::AfterFailed);
        if failed.contains(stream_key) {
            settlement.set_aside.push(slot.id);
        } else if is_unanswered || unanswered.contains(stream_key) {
            unanswered.insert(stream_key);
        } else if let Some(failure) = fate.failure(slot) {
            failed.insert(stream_key);
            settlement.set_aside.push(slot.id);
            let attempts = slot.attempts.unwrap_or(0);
            let is_last = match failure.attempts {
                Attempts::Unlimited => false,
                Attempts::Limited => attempts + 1 >= policy.max_attempts,
                Attempts::One => true,
            };
            settlement.holds.push(Hold {
                stream_key: slot.stream_key.clone(),
                lane: slot.lane,
                outbox_id: slot.id,
                reason: failure.reason,
                error: failure.text,
                retry_after: (!is_last).then(|| backoff.delay(attempts, part())),
            });
        } else {
            settlement.processed.push(slot.id);
        }
    }
    let recovered: HashSet<&str> = events
        .iter()
        .filter(|event| event.slot.attempts.is_some())
        .map(|event| event.slot.stream_key.as_str())
        .filter(|stream_key| !failed.contains(stream_key) && !unanswered.contains(stream_key))
        .collect();
    settlement.recovered = recovered.into_iter().map(str::to_owned).collect();
    settlement
}

#[cfg(test)]
mod tests;
