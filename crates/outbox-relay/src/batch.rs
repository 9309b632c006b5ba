//! The events of one claim, from the outbox row to its fate.

use std::collections::HashSet;

use broker::Outcome;
use chrono::{DateTime, Utc};
use domain_events::Message;
use event_store::Entry;

use crate::disposition::{EventFate, FailurePolicy, Fate, Slot};
use crate::metrics::Metrics;

/// Events of some lanes, each stream in order.
pub(crate) struct Batch {
    events: Vec<BatchEvent>,
    /// Bytes of payload, those of events that are not sent included.
    pub(crate) bytes: u64,
}

struct BatchEvent {
    slot: Slot,
    step: Step,
}

/// What to do with an event.
enum Step {
    Send {
        message: Message,
        recorded_at: DateTime<Utc>,
    },
    /// Not sent; its fate is known already.
    Leave(Fate),
}

impl Batch {
    pub(crate) fn new(entries: Vec<Entry>, max_message_bytes: u64) -> Self {
        let mut batch = Self { events: Vec::with_capacity(entries.len()), bytes: 0 };
        let mut stopped: HashSet<String> = HashSet::new();
        for entry in entries {
            let bytes = entry.bytes;
            batch.bytes += bytes;
            let slot = Slot {
                id: entry.id,
                lane: entry.lane,
                stream_key: entry.stream_key,
                routing_key: entry.routing_key,
                attempts: entry.attempts,
            };
            let step = if stopped.contains(&slot.stream_key) {
                Step::Leave(Fate::AfterFailed)
            } else {
                match entry.event {
                    Err(reason) => Step::Leave(Fate::Malformed { reason }),
                    Ok(_) if bytes > max_message_bytes => {
                        Step::Leave(Fate::TooLarge { bytes, limit: max_message_bytes })
                    }
                    Ok(event) => Step::Send {
                        recorded_at: event.recorded_at,
                        message: Message::encode(event, slot.routing_key.clone()),
                    },
                }
            };
            if matches!(step, Step::Leave(_)) {
                stopped.insert(slot.stream_key.clone());
            }
            batch.events.push(BatchEvent { slot, step });
        }
        batch
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// [`Batch::len`], as the limits of a claim count.
    pub(crate) fn count(&self) -> u32 {
        self.len().try_into().unwrap_or(u32::MAX)
    }

    /// How many of the messages the broker confirmed, and their bytes.
    pub(crate) fn confirmed(&self, outcomes: &[Outcome]) -> (u32, u64) {
        let mut confirmed = (0, 0);
        for (message, outcome) in self.messages().iter().zip(outcomes) {
            if *outcome == Outcome::Confirmed {
                confirmed.0 += 1;
                confirmed.1 += message.body.len() as u64;
            }
        }
        confirmed
    }

    /// The messages to send, in order.
    pub(crate) fn messages(&self) -> Vec<&Message> {
        let mut messages = Vec::with_capacity(self.events.len());
        for event in &self.events {
            match &event.step {
                Step::Send { message, .. } => messages.push(message),
                Step::Leave(_) => {}
            }
        }
        messages
    }

    /// Gives each event its fate, and counts it. `outcomes` are those of [`Batch::messages`].
    pub(crate) fn fates(
        self,
        outcomes: Vec<Outcome>,
        policy: &FailurePolicy,
        metrics: &Metrics,
    ) -> Vec<EventFate> {
        let now = Utc::now();
        let mut outcomes = outcomes.into_iter();
        let fate = |BatchEvent { slot, step }| {
            let (fate, recorded_at) = match step {
                Step::Leave(fate) => (fate, now),
                Step::Send { recorded_at, .. } => {
                    let of = |outcome| Fate::of(outcome, &slot.routing_key, policy);
                    (outcomes.next().map_or(Fate::Unanswered, of), recorded_at)
                }
            };
            if let Some(label) = fate.label() {
                metrics.count(label);
            }
            if fate == Fate::Confirmed {
                let age = now - recorded_at;
                metrics.event_age_seconds.observe(age.as_seconds_f64().max(0.0));
            }
            EventFate { slot, fate }
        };
        self.events.into_iter().map(fate).collect()
    }
}
