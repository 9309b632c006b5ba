//! One pass: claim lanes, publish their first events, record the outcome.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use broker::Interrupted;
use event_store::{ClaimLimits, Hold, Reason, Session};
use tokio::time::sleep;

use crate::batch::Batch;
use crate::disposition::{FailurePolicy, settle};
use crate::error::Error;
use crate::link::Link;
use crate::metrics::Metrics;
use crate::pace::Pace;

/// How long to wait before publishing events of lanes that another worker lost: messages it sent may
/// still be on their way to the broker, and must arrive before our copies.
const TAKE_OVER_PAUSE: Duration = Duration::from_secs(1);

/// The same cause of a wait is logged at most so often.
const NOTICE_INTERVAL: Duration = Duration::from_mins(1);
/// At most this many causes are logged in that time.
const NOTICES_MOST: usize = 100;

/// What a pass found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Nothing to publish.
    Idle,
    /// Some events; probably no more are pending.
    Some,
    /// So many events that more are probably pending.
    Full,
}

/// The limits of a pass.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// How many events and bytes to claim at most. Each pass adapts it.
    pub(crate) pace: Pace,
    /// A larger event is not sent.
    pub(crate) max_message_bytes: u64,
    pub(crate) failures: FailurePolicy,
    pub(crate) notices: Notices,
}

/// Publishes the first events of up to `lanes` lanes.
pub(crate) async fn pass(
    session: &mut Session,
    link: &mut Link,
    policy: &mut Policy,
    lanes: u16,
    metrics: &Metrics,
) -> Result<Pass, Error> {
    let limits = ClaimLimits {
        lanes,
        events: policy.pace.events(),
        bytes: policy.pace.bytes(),
        event_bytes: policy.max_message_bytes,
    };
    let claiming = Instant::now();
    let Some(mut claim) = session.claim(limits).await? else {
        return Ok(Pass::Idle);
    };
    metrics.claim_seconds.observe(claiming.elapsed().as_secs_f64());
    if claim.taken_over {
        tracing::info!("taking over lanes whose last claim was interrupted");
        sleep(TAKE_OVER_PAUSE).await;
    }
    let batch = Batch::new(std::mem::take(&mut claim.entries), policy.max_message_bytes);
    let started = Instant::now();
    let (outcomes, failure) = match link.publisher.publish(&batch.messages()).await {
        Ok(outcomes) => (outcomes, None),
        Err(Interrupted { outcomes, error }) => (outcomes, Some(error)),
    };
    let took = started.elapsed();
    metrics.publish_seconds.observe(took.as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 10,000 events")]
    metrics.batch_events.observe(batch.len() as f64);
    let (events, bytes) = batch.confirmed(&outcomes);
    metrics.confirms.add(events);
    match &failure {
        None => policy.pace.answered(batch.count(), batch.bytes, took),
        Some(broker::Error::Timeout { .. }) => policy.pace.interrupted(events, bytes, took),
        Some(_) => {}
    }
    let full = policy.pace.is_full(batch.count(), batch.bytes) || claim.met_waiting_streams();
    let fates = batch.fates(outcomes, &policy.failures, metrics);
    let settlement = settle(&fates, &policy.failures, rand::random);
    for hold in &settlement.holds {
        policy.notices.log(hold);
    }
    let Some(error) = failure else {
        claim.settle(&settlement).await?;
        return Ok(if full { Pass::Full } else { Pass::Some });
    };
    // Sent messages must reach the broker before the lanes are free: another worker could otherwise send
    // later events of the same streams first.
    if link.connection.is_connected() && !link.connection.is_blocked() {
        link.connection.close().await;
    }
    // A claim that cannot be settled ends with its connection.
    if let Err(settling) = claim.settle(&settlement).await {
        tracing::debug!(error = daemon::chain(&settling), "settling a claim failed");
    }
    Err(error.into())
}

/// What was logged about streams that wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notices(HashMap<String, Instant>);

impl Notices {
    /// A parked stream needs a person, and so does a queue that is missing or full. The latter can affect
    /// many streams, and is repeated once a minute.
    fn log(&mut self, hold: &Hold) {
        let (stream, id, error) = (&hold.stream_key, hold.outbox_id.get(), &hold.error);
        if hold.retry_after.is_none() {
            tracing::warn!(
                stream,
                id,
                error,
                "stream parked: see `outbox-relay parked show {id}`, then retry or skip the event"
            );
        } else if matches!(hold.reason, Reason::Unroutable | Reason::Nacked) && self.is_new(error) {
            tracing::warn!(stream, id, error, "streams wait: see `outbox-relay status`");
        } else {
            tracing::debug!(stream, id, error, "stream held until the next retry");
        }
    }

    /// Whether this was not said within the last minute.
    fn is_new(&mut self, error: &str) -> bool {
        self.0.retain(|_, said| said.elapsed() < NOTICE_INTERVAL);
        let is_new = !self.0.contains_key(error) && self.0.len() < NOTICES_MOST;
        if is_new {
            self.0.insert(error.to_owned(), Instant::now());
        }
        is_new
    }
}
