//! What happens to each event of a batch: the one place that decides it.

use std::collections::HashSet;
use std::time::Duration;

use daemon::backoff::Backoff;
use event_store::{Hold, Lane, OutboxId, Settlement};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The broker has it.
    Confirmed,
    /// No queue is bound for it.
    Returned,
    /// The broker refused it.
    Nacked,
    /// It was not sent, because it is too large.
    TooLarge { bytes: usize, limit: usize },
    /// It was not sent, because an event before it in its stream failed.
    NotSent,
}

/// When a stream that failed is tried again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Fate {
    /// The label of the metric that counts it; none when nothing was tried.
    pub(crate) fn label(self) -> Option<&'static str> {
        match self {
            Self::Confirmed => Some("confirmed"),
            Self::Returned => Some("returned"),
            Self::Nacked => Some("nacked"),
            Self::TooLarge { .. } => Some("too_large"),
            Self::NotSent => None,
        }
    }

    fn failure(self, slot: &Slot) -> Option<String> {
        let key = &slot.routing_key;
        match self {
            Self::Confirmed => None,
            Self::Returned => Some(format!(
                "no queue is bound for routing key {key}: bind one to the exchange, \
                 for example by starting the projector that should receive it"
            )),
            Self::Nacked => Some(format!(
                "RabbitMQ refused the message with routing key {key}: is one of its queues full?"
            )),
            Self::TooLarge { bytes, limit } => Some(format!(
                "the event has {bytes} bytes, and relay.max_message_bytes allows {limit}"
            )),
            Self::NotSent => Some("an event before it in its stream failed".to_owned()),
        }
    }
}

/// Decides what to record for a batch whose events are in order.
///
/// After the first event of a stream that failed, its later ones are set aside whatever became of
/// them, so that their last copies on the wire are in order. `part` gives random numbers from 0 to
/// 1.
pub(crate) fn settle(
    slots: &[Slot],
    fates: &[Fate],
    policy: RetryPolicy,
    mut part: impl FnMut() -> f64,
) -> Settlement {
    let mut settlement = Settlement::default();
    let mut failed: HashSet<&str> = HashSet::new();
    let backoff = Backoff::new(policy.min, policy.max);
    for (slot, fate) in slots.iter().zip(fates) {
        if failed.contains(slot.stream_key.as_str()) {
            settlement.set_aside.push(slot.id);
        } else if let Some(error) = fate.failure(slot) {
            failed.insert(&slot.stream_key);
            settlement.set_aside.push(slot.id);
            settlement.holds.push(Hold {
                stream_key: slot.stream_key.clone(),
                lane: slot.lane,
                outbox_id: slot.id,
                error,
                retry_after: backoff.delay(slot.attempts.unwrap_or(0), part()),
            });
        } else {
            settlement.processed.push(slot.id);
        }
    }
    let recovered: HashSet<&str> = slots
        .iter()
        .filter(|slot| slot.attempts.is_some() && !failed.contains(slot.stream_key.as_str()))
        .map(|slot| slot.stream_key.as_str())
        .collect();
    settlement.recovered = recovered.into_iter().map(str::to_owned).collect();
    settlement
}

#[cfg(test)]
mod tests;
