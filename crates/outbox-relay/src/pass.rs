//! One pass: claim, publish, record.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use broker::Outcome;
use chrono::Utc;
use domain_events::Message;
use event_store::{Claim, ClaimLimits, Hold, Session};
use tokio::time::sleep;

use crate::disposition::{FailurePolicy, Fate, Slot, settle};
use crate::metrics::Metrics;
use crate::survey::Survey;
use crate::worker::Link;

/// How long the broker has to take in what a dead relay had sent, before others publish the same
/// events: its copies would come after theirs.
const TAKE_OVER_PAUSE: Duration = Duration::from_secs(1);

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
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) events: u32,
    pub(crate) bytes: u64,
    pub(crate) max_message_bytes: u64,
    pub(crate) failures: FailurePolicy,
}

/// Publishes the first events of some lanes.
pub(crate) async fn pass(
    session: &mut Session,
    link: &mut Link,
    policy: &Policy,
    survey: &Survey,
    metrics: &Metrics,
) -> Result<Pass, Trouble> {
    let limits = ClaimLimits {
        lanes: survey.lanes(),
        events: policy.events,
        bytes: policy.bytes,
        event_bytes: policy.max_message_bytes,
    };
    let claiming = Instant::now();
    let Some(mut claim) = session.claim(limits).await.map_err(Trouble::Store)? else {
        return Ok(Pass::Idle);
    };
    metrics.claim_seconds.observe(claiming.elapsed().as_secs_f64());
    if claim.taken_over {
        tracing::info!("taking over lanes whose last claim was broken off");
        sleep(TAKE_OVER_PAUSE).await;
    }
    let batch = Batch::of(&mut claim, policy.max_message_bytes);
    let started = Instant::now();
    let outcomes = match link.publisher.publish(&batch.messages).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            // What was sent must not overtake what others send once the lanes are free.
            if link.connection.is_connected() && !link.connection.is_blocked() {
                link.connection.close().await;
            }
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

    let full = batch.slots.len() >= policy.events as usize / 2
        || batch.bytes >= policy.bytes / 2
        || claim.met_waiting_streams();
    let fates = batch.fates(outcomes, &policy.failures);
    batch.observe(&fates, metrics);
    let settlement = settle(&batch.slots, &fates, &policy.failures, rand::random);
    for hold in &settlement.holds {
        tell(hold);
    }
    claim.settle(&settlement).await.map_err(Trouble::Store)?;
    Ok(if full { Pass::Full } else { Pass::Some })
}

/// A stream that waits for a person is worth a warning, one that is tried again is not.
fn tell(hold: &Hold) {
    let (stream, id, error) = (&hold.stream_key, hold.outbox_id.get(), &hold.error);
    if hold.retry_after.is_none() {
        tracing::warn!(
            stream,
            id,
            error,
            "stream blocked: see `outbox-relay blocked show {id}`, then retry or skip it"
        );
    } else {
        tracing::debug!(stream, id, error, "stream waits");
    }
}

struct Batch {
    slots: Vec<Slot>,
    recorded_at: Vec<chrono::DateTime<Utc>>,
    /// For each slot, what is known before sending; `None` for those that are sent.
    unsent: Vec<Option<Fate>>,
    messages: Vec<Message>,
    bytes: u64,
}

impl Batch {
    fn of(claim: &mut Claim<'_>, max_message_bytes: u64) -> Self {
        let entries = std::mem::take(&mut claim.entries);
        let mut batch = Self {
            slots: Vec::with_capacity(entries.len()),
            recorded_at: Vec::with_capacity(entries.len()),
            unsent: Vec::with_capacity(entries.len()),
            messages: Vec::with_capacity(entries.len()),
            bytes: 0,
        };
        let mut stopped: HashSet<String> = HashSet::new();
        for entry in entries {
            let bytes = entry.bytes;
            batch.bytes += bytes;
            let unsent = if stopped.contains(&entry.stream_key) {
                Some(Fate::Behind)
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

    fn fates(&self, outcomes: Vec<Outcome>, policy: &FailurePolicy) -> Vec<Fate> {
        let mut sent = self.messages.iter().zip(outcomes);
        let fate = |unsent: &Option<Fate>| match unsent {
            Some(fate) => fate.clone(),
            None => sent.next().map_or(Fate::Untried, |(message, outcome)| {
                Fate::of(outcome, &message.routing_key, policy)
            }),
        };
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
