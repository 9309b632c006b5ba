//! Takes the deliveries of one queue, distributes them over lanes, and settles them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use broker::{Connection, Delivery, Envelope, Queue, Receipt};
use daemon::output::counted;
use daemon::{CancellationToken, Probe, chain};
use domain_events::{Event, StoredEvent, StreamId, StreamRange};
use projection::plan::Verdict;
use read_model::ReadModel;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::batches::{Batches, Place};
use super::deliveries::Deliveries;
use super::duplicates::Duplicates;
use super::gaps::{Gaps, Reading};
use super::lane::{Failure, Finished, Lane, Pending, Report};
use crate::context::Context;
use crate::error::Error;
use crate::history::History;
use crate::metrics::Outcome;

/// How long deliveries are kept while MySQL or the event store fails. Another instance may have more success.
const KEEP_LIMIT: Duration = Duration::from_secs(3);
/// How long running batches may take to end when the consumer closes.
const CLOSE_LIMIT: Duration = Duration::from_secs(6);

/// The reason in the dead letter of an event that has no version.
const NOT_STORED: &str = "the event is not in the event store: the application inserted it into outbox \
    itself. Projections apply events of the event store only, so that a rebuild has them too: append it \
    with append_event() or append_to_stream()";

/// The reason in the dead letter of an event that was published and then lost.
const LOST: &str = "the event store does not have the event: it has lost it in a failover, a crash or a restore. \
    Append it again if it must count";

/// Applies the deliveries of a queue to one read model.
pub(crate) struct Consumer<'c> {
    context: &'c Arc<Context>,
    model: &'c Arc<ReadModel>,
    deliveries: Deliveries,
    lanes: Vec<Lane>,
    batches: JoinSet<Report>,
    gaps: Gaps,
    duplicates: Duplicates,
    /// The number of the queue, from 0.
    number: usize,
    outcomes: &'c Batches,
    /// Reports streams with gaps.
    probe: &'c Probe,
    activity: watch::Sender<Activity>,
}

/// A projection and the broker connection that its consumers use.
#[derive(Clone, Copy)]
pub(super) struct ConnectedProjection<'c> {
    pub(super) context: &'c Arc<Context>,
    pub(super) model: &'c Arc<ReadModel>,
    pub(super) connection: &'c Connection,
    /// Reports streams that wait for missing events.
    pub(super) gaps: &'c Probe,
    /// Reports whether batches fail.
    pub(super) batches: &'c Batches,
}

/// Shows whether a queue delivers to this instance.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Activity {
    /// The time of the last delivery.
    pub(crate) last_delivery: Option<Instant>,
    /// Whether deliveries are unsettled. A slow batch may use up the prefetch; then the queue delivers nothing,
    /// although this instance holds it.
    pub(crate) unsettled: bool,
}

impl<'c> Consumer<'c> {
    /// Starts to consume.
    pub(super) async fn open(
        projection: ConnectedProjection<'c>,
        (number, queue): (usize, &Queue),
        activity: watch::Sender<Activity>,
    ) -> Result<Self, Error> {
        let ConnectedProjection { context, model, connection, gaps: probe, batches } = projection;
        batches.opened(number);
        let (prefetch, retry_max) = (context.settings.prefetch, context.settings.retry_max);
        let deliveries = Deliveries::open(connection, &context.broker, queue, prefetch).await?;
        Ok(Self {
            context,
            model,
            deliveries,
            lanes: (0..model.lanes()).map(|_| Lane::new(retry_max)).collect(),
            batches: JoinSet::new(),
            // The other half of the prefetch stays free for streams without a gap.
            gaps: Gaps::new(
                History::new(context.store.clone()),
                usize::from(prefetch) / 2,
                retry_max,
            ),
            duplicates: Duplicates::new(History::new(context.store.clone()), retry_max),
            number,
            outcomes: batches,
            probe,
            activity,
        })
    }

    /// Applies deliveries until `stop`.
    pub(crate) async fn follow(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            self.start();
            let unsettled = self.deliveries.unsettled();
            self.outcomes.holds(self.number, unsettled);
            self.activity.send_modify(|activity| activity.unsettled = unsettled > 0);
            let timer = self.timer();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(report) = self.batches.join_next() => self.settle(joined(report)?).await?,
                Some(read) = self.gaps.join_next() => self.close_gaps(joined(read)?).await?,
                Some(compared) = self.duplicates.join_next() => {
                    self.duplicates.finish(joined(compared)?)?;
                }
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {}
                next = self.deliveries.next(self.context.settings.batch_size) => {
                    let deliveries = next?;
                    self.outcomes.delivered(self.number, deliveries.len());
                    let now = Instant::now();
                    self.activity.send_modify(|activity| activity.last_delivery = Some(now));
                    for delivery in deliveries {
                        self.receive(delivery).await?;
                    }
                }
            }
        }
    }

    /// Lets running batches end, acknowledges their messages, and gives all others back to the queue.
    pub(crate) async fn close(mut self) {
        let ended = timeout(CLOSE_LIMIT, async {
            while let Some(report) = self.batches.join_next().await {
                let Ok(report) = report else { continue };
                if let Err(error) = self.settle(report).await {
                    tracing::debug!(error = chain(&error), "the last batch of a queue failed");
                }
            }
        });
        drop(ended.await);
        self.batches.shutdown().await;
        self.duplicates.abort().await;
        let mut rest = self.gaps.abort().await;
        for lane in &mut self.lanes {
            rest.extend(lane.take_waiting());
            lane.close().await;
        }
        let receipts: Vec<Receipt> =
            rest.into_iter().filter_map(|it| it.envelope).map(Envelope::into_receipt).collect();
        if let Err(error) = self.deliveries.give_back(receipts).await {
            tracing::debug!(error = chain(&error), "messages were not given back to the queue");
        }
        self.deliveries.close().await;
        self.outcomes.holds(self.number, 0);
        self.activity.send_modify(|activity| activity.unsettled = false);
    }

    /// Starts batches in idle lanes, the read of missing events, and the comparison of duplicates.
    fn start(&mut self) {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(batch) = lane.start(number, self.context, self.model) {
                self.outcomes.began(Place { queue: self.number, lane: number });
                self.batches.spawn(batch);
            }
        }
        self.gaps.start_reading();
        self.duplicates.start(self.context, self.model);
    }

    /// The next time at which a batch or a read is due.
    fn timer(&self) -> Option<Instant> {
        let lanes = self.lanes.iter().filter_map(Lane::retry_at);
        lanes.chain(self.gaps.next_due()).chain(self.duplicates.next_due()).min()
    }

    /// Decodes a message and passes its event to a lane. A message without an event for this projection becomes
    /// a dead letter.
    async fn receive(&mut self, delivery: Delivery) -> Result<(), Error> {
        let Delivery { message, envelope } = delivery;
        let event = message.decode().map_err(|error| error.to_string());
        match event.and_then(|event| self.accept(event)) {
            Ok(event) => self.push(Pending { event, envelope: Some(envelope) }),
            Err(reason) => self.dead_letter(envelope, &message.body, &reason).await?,
        }
        Ok(())
    }

    /// Returns the event, or the reason why this projection does not apply it. A rebuild must apply the same
    /// events.
    fn accept(&self, event: Event) -> Result<StoredEvent, String> {
        let event = event.into_stored().map_err(|_event| NOT_STORED)?;
        let category = event.stream_id.category();
        let followed = &self.model.projection.categories;
        if followed.iter().any(|known| known.as_str() == category) {
            Ok(event)
        } else {
            Err(format!("this projection does not follow category {category}"))
        }
    }

    fn push(&mut self, pending: Pending) {
        let mut hasher = DefaultHasher::new();
        pending.event.stream_id.as_str().hash(&mut hasher);
        let lanes = self.lanes.len() as u64;
        let lane = usize::try_from(hasher.finish() % lanes).unwrap_or_default();
        self.lanes[lane].push(pending);
    }

    /// Moves a message to the dead-letter queue. If that fails, gives it back to its queue.
    async fn dead_letter(
        &mut self,
        envelope: Envelope,
        body: &[u8],
        reason: &str,
    ) -> Result<(), Error> {
        let moved = self.deliveries.dead_letter(&envelope, body, reason).await;
        let receipts = vec![envelope.into_receipt()];
        if let Err(error) = moved {
            self.deliveries.give_back(receipts).await?;
            return Err(error.into());
        }
        self.deliveries.ack_dead_letters(receipts).await?;
        self.context.metrics.count(self.model.name(), Outcome::DeadLettered, 1);
        tracing::warn!(
            projection = self.model.name(),
            reason,
            "a message is not an event for this projection and went to its dead-letter queue"
        );
        Ok(())
    }

    /// Settles the deliveries of a batch. Deliveries that follow a gap wait.
    async fn settle(&mut self, report: Report) -> Result<(), Error> {
        let lane = report.lane();
        let place = Place { queue: self.number, lane };
        self.outcomes.ended(place);
        let Finished { batch, applied, lost } = match self.lanes[lane].finish(report) {
            Ok(finished) => finished,
            Err(failure) => return self.failed(place, failure),
        };
        self.outcomes.succeeded(place);
        let mut receipts = Vec::with_capacity(batch.len());
        let mut waiting = Vec::new();
        for (pending, verdict) in batch.into_iter().zip(&applied.verdicts) {
            match verdict {
                Verdict::Gap => waiting.push(pending),
                verdict => {
                    if *verdict == Verdict::Apply {
                        self.release(&pending.event);
                    }
                    if *verdict == Verdict::Duplicate && pending.envelope.is_some() {
                        self.duplicates.push(&pending.event);
                    }
                    receipts.extend(pending.envelope.map(Envelope::into_receipt));
                }
            }
        }
        self.deliveries.ack(receipts, &applied.committed).await?;
        let gaps: HashMap<_, _> =
            applied.gaps.into_iter().map(|gap| (gap.stream_id.clone(), gap)).collect();
        for pending in waiting {
            self.hold(pending, &gaps).await?;
        }
        for Pending { event, envelope } in lost {
            let Some(envelope) = envelope else { continue };
            self.dead_letter(envelope, event.data.as_str().as_bytes(), LOST).await?;
        }
        Ok(())
    }

    /// Decides about a failed batch: the lane tries again for [`KEEP_LIMIT`], then the consumer gives up.
    fn failed(&self, place: Place, failure: Failure) -> Result<(), Error> {
        let Failure { error, since } = failure;
        match *error {
            Error::Server(error) if since <= KEEP_LIMIT => {
                tracing::debug!(error = chain(&error), "a batch failed and is tried again");
                self.context.metrics.lost(error.name());
                Ok(())
            }
            Error::Server(error) => {
                self.outcomes.failed(place, &error);
                Err(error.into())
            }
            error => Err(error),
        }
    }

    /// Lets a delivery wait for the events before it. If too many wait, defers it.
    async fn hold(
        &mut self,
        pending: Pending,
        gaps: &HashMap<StreamId, StreamRange>,
    ) -> Result<(), Error> {
        let Some(missing) = gaps.get(&pending.event.stream_id) else { return Ok(()) };
        match self.gaps.hold(pending, missing) {
            None => Ok(()),
            Some(pending) => self.defer(vec![pending]).await,
        }
    }

    async fn defer(&mut self, events: Vec<Pending>) -> Result<(), Error> {
        let receipts: Vec<Receipt> =
            events.into_iter().filter_map(|it| it.envelope).map(Envelope::into_receipt).collect();
        self.context.metrics.count(self.model.name(), Outcome::Deferred, receipts.len());
        Ok(self.deliveries.defer(receipts).await?)
    }

    /// After an event was applied, puts the deliveries of its stream that waited back into a lane.
    fn release(&mut self, event: &StoredEvent) {
        for pending in self.gaps.close(&event.stream_id).into_iter().flatten() {
            self.push(pending);
        }
        if self.gaps.is_empty() {
            self.probe.ok();
        }
    }

    /// Puts missing events that were read into a lane, and after them the deliveries that waited.
    async fn close_gaps(&mut self, reading: Reading) -> Result<(), Error> {
        let (missing, result) = self.gaps.finish(reading);
        let found = match result {
            Ok(found) => found,
            Err(error) => return self.postpone_gaps(&missing, &chain(&error)).await,
        };
        for missing in missing {
            let Some(waiting) = self.gaps.close(&missing.stream_id) else { continue };
            let own = found.iter().filter(|event| event.stream_id == missing.stream_id);
            if own.clone().any(|event| event.version == missing.from) {
                for event in own.cloned() {
                    self.push(Pending { event, envelope: None });
                }
                for pending in waiting {
                    self.push(pending);
                }
            } else {
                self.refuse(&missing, waiting).await?;
            }
        }
        if self.gaps.is_empty() {
            self.probe.ok();
        }
        Ok(())
    }

    /// Schedules another read of missing events after a failure. Only their streams wait. Deliveries that have
    /// waited for too long are deferred: unsettled, they would keep the broker from handing the queue over to
    /// another instance.
    async fn postpone_gaps(&mut self, missing: &[StreamRange], reason: &str) -> Result<(), Error> {
        let expired = self.gaps.postpone(missing, KEEP_LIMIT);
        self.context.metrics.lost("postgresql");
        self.probe.failing(&format!(
            "missing events of {} cannot be read from the event store: {reason}",
            counted(self.gaps.len(), "stream", "streams")
        ));
        self.defer(expired).await
    }

    /// Moves deliveries to the dead-letter queue if the event store lacks the events before them.
    async fn refuse(&mut self, missing: &StreamRange, waiting: Vec<Pending>) -> Result<(), Error> {
        for Pending { event, envelope } in waiting {
            let Some(envelope) = envelope else { continue };
            let StoredEvent { stream_id, version, .. } = &event;
            let reason = format!(
                "version {version} of stream {stream_id} cannot be applied: the event store has no \
                 version {}",
                missing.from
            );
            self.dead_letter(envelope, event.data.as_str().as_bytes(), &reason).await?;
        }
        Ok(())
    }
}

/// The result of a task. Tasks do not panic, and are aborted only when the consumer closes.
fn joined<T>(result: Result<T, JoinError>) -> Result<T, Error> {
    result.map_err(|_aborted| Error::Stopped)
}
