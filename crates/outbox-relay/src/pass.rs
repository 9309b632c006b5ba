//! One pass: claim lanes, publish their first events, record the outcome.

use std::time::{Duration, Instant};

use event_store::{ClaimLimits, Hold, Session};
use tokio::time::sleep;

use crate::batch::Batch;
use crate::disposition::{FailurePolicy, settle};
use crate::error::Error;
use crate::link::Link;
use crate::metrics::Metrics;

/// How long to wait before publishing events of lanes that another worker lost: messages it sent may
/// still be on their way to the broker, and must arrive before our copies.
const TAKE_OVER_PAUSE: Duration = Duration::from_secs(1);

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
    /// Events at most.
    pub(crate) events: u32,
    /// Bytes of payload at most, unless a single event has more.
    pub(crate) bytes: u64,
    /// A larger event is not sent.
    pub(crate) max_message_bytes: u64,
    pub(crate) failures: FailurePolicy,
}

/// Publishes the first events of up to `lanes` lanes.
pub(crate) async fn pass(
    session: &mut Session,
    link: &mut Link,
    policy: &Policy,
    lanes: u16,
    metrics: &Metrics,
) -> Result<Pass, Error> {
    let limits = ClaimLimits {
        lanes,
        events: policy.events,
        bytes: policy.bytes,
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
    let outcomes = match link.publisher.publish(&batch.messages()).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            // Sent messages must reach the broker before the lanes are free: another worker could
            // otherwise send later events of the same streams first.
            if link.connection.is_connected() && !link.connection.is_blocked() {
                link.connection.close().await;
            }
            // A claim that cannot be released ends with its connection.
            if let Err(release) = claim.release().await {
                tracing::debug!(error = daemon::chain(&release), "releasing a claim failed");
            }
            return Err(error.into());
        }
    };
    metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 10,000 events")]
    metrics.batch_events.observe(batch.len() as f64);

    let full = batch.len() >= policy.events as usize / 2
        || batch.bytes >= policy.bytes / 2
        || claim.met_waiting_streams();
    let fates = batch.fates(outcomes, &policy.failures, metrics);
    let settlement = settle(&fates, &policy.failures, rand::random);
    for hold in &settlement.holds {
        log(hold);
    }
    claim.settle(&settlement).await?;
    Ok(if full { Pass::Full } else { Pass::Some })
}

/// A parked stream needs a person, so it is a warning; a stream that will be retried is not.
fn log(hold: &Hold) {
    let (stream, id, error) = (&hold.stream_key, hold.outbox_id.get(), &hold.error);
    if hold.retry_after.is_none() {
        tracing::warn!(
            stream,
            id,
            error,
            "stream parked: see `outbox-relay parked show {id}`, then retry or skip the event"
        );
    } else {
        tracing::debug!(stream, id, error, "stream held until the next retry");
    }
}
