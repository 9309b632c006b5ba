//! One pass: claim, publish, record.

use std::collections::HashSet;
use std::time::Instant;

use broker::{Outcome, Publisher};
use chrono::Utc;
use domain_events::Message;
use event_store::{Claim, ClaimLimits, Session};

use crate::disposition::{Fate, RetryPolicy, Slot, settle};
use crate::metrics::Metrics;

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// There was nothing to do.
    Idle,
    /// It published what there was.
    Some,
    /// There is probably more.
    Full,
}

/// Which server let a pass down. Its connection must not be used again.
#[derive(Debug)]
pub(crate) enum Trouble {
    Store(event_store::Error),
    Broker(broker::Error),
}

/// How a pass works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) lanes: u16,
    pub(crate) events: u32,
    pub(crate) max_message_bytes: usize,
    pub(crate) retry: RetryPolicy,
}

/// Publishes the first events of some lanes.
pub(crate) async fn pass(
    session: &mut Session,
    publisher: &mut Publisher,
    policy: &Policy,
    metrics: &Metrics,
) -> Result<Pass, Trouble> {
    let limits = ClaimLimits {
        lanes: policy.lanes,
        events: policy.events,
        start: rand::random_range(0..64),
    };
    let Some(mut claim) = session.claim(limits).await.map_err(Trouble::Store)? else {
        return Ok(Pass::Idle);
    };
    let batch = Batch::of(&mut claim, policy.max_message_bytes);
    let started = Instant::now();
    let outcomes = match publisher.publish(&batch.messages).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            // The broker's trouble is what matters; a claim that cannot be released ends with its
            // connection.
            return Err(match claim.release().await {
                Ok(()) => Trouble::Broker(error),
                Err(release) => {
                    tracing::debug!(error = daemon::chain(&release), "releasing a claim failed");
                    Trouble::Broker(error)
                }
            });
        }
    };
    metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 10,000 events")]
    metrics.batch_events.observe(batch.slots.len() as f64);

    let full = batch.slots.len() >= policy.events as usize / 2;
    let fates = batch.fates(outcomes);
    batch.observe(&fates, metrics);
    let settlement = settle(&batch.slots, &fates, policy.retry, rand::random);
    for hold in &settlement.holds {
        tracing::debug!(stream = hold.stream_key, reason = hold.error, "stream waits");
    }
    claim.settle(&settlement).await.map_err(Trouble::Store)?;
    Ok(if full { Pass::Full } else { Pass::Some })
}

struct Batch {
    slots: Vec<Slot>,
    recorded_at: Vec<chrono::DateTime<Utc>>,
    /// For each slot, what is known before sending; `None` for those that are sent.
    unsent: Vec<Option<Fate>>,
    messages: Vec<Message>,
}

impl Batch {
    fn of(claim: &mut Claim<'_>, max_message_bytes: usize) -> Self {
        let entries = std::mem::take(&mut claim.entries);
        let mut batch = Self {
            slots: Vec::with_capacity(entries.len()),
            recorded_at: Vec::with_capacity(entries.len()),
            unsent: Vec::with_capacity(entries.len()),
            messages: Vec::with_capacity(entries.len()),
        };
        let mut stopped: HashSet<String> = HashSet::new();
        for entry in entries {
            let bytes = entry.event.data.as_str().len();
            let unsent = if stopped.contains(&entry.stream_key) {
                Some(Fate::NotSent)
            } else if bytes > max_message_bytes {
                stopped.insert(entry.stream_key.clone());
                Some(Fate::TooLarge { bytes, limit: max_message_bytes })
            } else {
                None
            };
            batch.slots.push(Slot {
                id: entry.id,
                lane: entry.lane,
                stream_key: entry.stream_key,
                routing_key: entry.routing_key.clone(),
                attempts: entry.attempts,
            });
            batch.recorded_at.push(entry.event.recorded_at);
            if unsent.is_none() {
                batch.messages.push(Message::encode(entry.event, entry.routing_key));
            }
            batch.unsent.push(unsent);
        }
        batch
    }

    fn fates(&self, outcomes: Vec<Outcome>) -> Vec<Fate> {
        let mut sent = outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Confirmed => Fate::Confirmed,
            Outcome::Returned => Fate::Returned,
            Outcome::Nacked => Fate::Nacked,
        });
        let fate = |unsent: &Option<Fate>| unsent.or_else(|| sent.next()).unwrap_or(Fate::NotSent);
        self.unsent.iter().map(fate).collect()
    }

    fn observe(&self, fates: &[Fate], metrics: &Metrics) {
        let now = Utc::now();
        for (recorded_at, fate) in self.recorded_at.iter().zip(fates) {
            if let Some(label) = fate.label() {
                metrics.count(label);
            }
            if *fate == Fate::Confirmed {
                let age = now - *recorded_at;
                metrics.event_age_seconds.observe(age.as_seconds_f64().max(0.0));
            }
        }
    }
}
