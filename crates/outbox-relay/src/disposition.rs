//! What happens to each event of a batch: the one place that decides it.

use std::collections::HashSet;
use std::time::Duration;

use broker::{Outcome, TopicPattern};
use daemon::backoff::Backoff;
use event_store::{Hold, Lane, OutboxId, Reason, Settlement};

/// An event of the batch, without what was sent.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) id: OutboxId,
    pub(crate) lane: Lane,
    pub(crate) stream_key: String,
    pub(crate) routing_key: String,
    /// How often the event that its stream waits for has failed; absent when it does not wait.
    pub(crate) attempts: Option<u32>,
}

/// What became of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The broker has it.
    Confirmed,
    /// No queue is bound for it, and that is as it should be.
    Discarded,
    /// No queue is bound for it.
    Returned,
    /// The broker cannot take it now, because a queue is full for example.
    Nacked,
    /// It was not sent, because it is too large.
    TooLarge { bytes: u64, limit: u64 },
    /// The broker closed the channel over it.
    Refused { reason: String },
    /// It was not sent, because an event before it in its stream failed.
    Behind,
    /// It was not sent, because time was up.
    Untried,
}

/// What is done about failures.
#[derive(Debug, Clone)]
pub(crate) struct FailurePolicy {
    /// When a stream is tried again.
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
    /// How often an event that fails for its own sake is tried before its stream is blocked.
    pub(crate) max_attempts: u32,
    /// Events that need no queue.
    pub(crate) discard_unroutable: Vec<TopicPattern>,
    /// Published rows are deleted at once.
    pub(crate) delete: bool,
}

/// A failure.
struct Failure {
    reason: Reason,
    text: String,
    /// The event itself is to blame: trying for ever does not help.
    own_fault: bool,
}

impl Fate {
    /// What the broker's answer means.
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
            Outcome::Untried => Self::Untried,
        }
    }

    /// The label of the metric that counts it; none when nothing was tried.
    pub(crate) fn label(&self) -> Option<&'static str> {
        match self {
            Self::Confirmed => Some("confirmed"),
            Self::Discarded => Some("discarded"),
            Self::Returned => Some("returned"),
            Self::Nacked => Some("nacked"),
            Self::TooLarge { .. } => Some("too_large"),
            Self::Refused { .. } => Some("refused"),
            Self::Behind | Self::Untried => None,
        }
    }

    fn failure(&self, slot: &Slot) -> Option<Failure> {
        let key = &slot.routing_key;
        let (reason, own_fault, text) = match self {
            Self::Confirmed | Self::Discarded | Self::Behind | Self::Untried => return None,
            Self::Returned => (
                Reason::Unroutable,
                false,
                format!(
                    "no queue is bound for routing key {key}: bind one to the exchange, \
                     for example by starting the projector that should receive it"
                ),
            ),
            Self::Nacked => (
                Reason::Nacked,
                false,
                format!(
                    "RabbitMQ refused the message with routing key {key}: is one of its queues full?"
                ),
            ),
            Self::TooLarge { bytes, limit } => (
                Reason::TooLarge,
                true,
                format!(
                    "the event has {bytes} bytes, and {limit} are allowed \
                     (relay.max_message_bytes, or the broker's max_message_size)"
                ),
            ),
            Self::Refused { reason } => {
                (Reason::Refused, true, format!("RabbitMQ refused the message: {reason}"))
            }
        };
        Some(Failure { reason, text, own_fault })
    }
}

/// Decides what to record for a batch whose events are in order.
///
/// After the first event of a stream that failed, its later ones are set aside whatever became of
/// them, so that their last copies on the wire are in order; after the first that was not tried, they
/// stay as they are. `part` gives random numbers from 0 to 1.
pub(crate) fn settle(
    slots: &[Slot],
    fates: &[Fate],
    policy: &FailurePolicy,
    mut part: impl FnMut() -> f64,
) -> Settlement {
    let mut settlement = Settlement { delete: policy.delete, ..Settlement::default() };
    let mut failed: HashSet<&str> = HashSet::new();
    let mut untried: HashSet<&str> = HashSet::new();
    let backoff = Backoff::new(policy.retry_min, policy.retry_max);
    for (slot, fate) in slots.iter().zip(fates) {
        let stream_key = slot.stream_key.as_str();
        let is_untried = matches!(fate, Fate::Untried | Fate::Behind);
        if failed.contains(stream_key) {
            settlement.set_aside.push(slot.id);
        } else if is_untried || untried.contains(stream_key) {
            untried.insert(stream_key);
        } else if let Some(failure) = fate.failure(slot) {
            failed.insert(stream_key);
            settlement.set_aside.push(slot.id);
            let attempts = slot.attempts.unwrap_or(0);
            let is_last = failure.own_fault && attempts + 1 >= policy.max_attempts;
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
    let recovered: HashSet<&str> = slots
        .iter()
        .filter(|slot| slot.attempts.is_some())
        .map(|slot| slot.stream_key.as_str())
        .filter(|stream_key| !failed.contains(stream_key) && !untried.contains(stream_key))
        .collect();
    settlement.recovered = recovered.into_iter().map(str::to_owned).collect();
    settlement
}

#[cfg(test)]
mod tests;
