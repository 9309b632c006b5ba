//! Following a queue.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use broker::{Connection, Delivery, Envelope, Queue, Receipt};
use daemon::backoff::Backoff;
use daemon::{CancellationToken, Probe, chain};
use domain_events::{Event, StoredEvent, StreamId, StreamRange};
use projection::plan::Verdict;
use read_model::{ApplyError, Committed, ReadModel};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::deliveries::Deliveries;
use super::lane::{Failure, Lane, Pending, Report};
use crate::context::Context;
use crate::error::Error;
use crate::history::History;
use crate::metrics::Outcome;

/// How long deliveries are kept while MySQL does not take them; then another instance may.
const KEEP_LIMIT: Duration = Duration::from_secs(3);
/// How long to wait for missing events to be delivered, before the event store is asked.
const GAP_WAIT: Duration = Duration::from_millis(50);
/// The first pause when the event store cannot be asked.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// How long batches may take to end when the queue is left.
const LEAVE_LIMIT: Duration = Duration::from_secs(6);

/// Why a message is a dead letter whose event is not in the event store.
const NOT_STORED: &str = "the event is not in the event store: the application inserted it into outbox \
    itself. Projections apply events of the event store only, so that a rebuild has them too: append it \
    with append_event() or append_to_stream()";

/// Applies the deliveries of a queue to one read model.
pub(crate) struct Consumer<'c> {
    context: &'c Arc<Context>,
    model: &'c Arc<ReadModel>,
    deliveries: Deliveries,
    lanes: Vec<Lane>,
    batches: JoinSet<Report>,
    gaps: HashMap<StreamId, Gap>,
    /// One at most reads the event store.
    reading: JoinSet<Reading>,
    /// Away while it is read.
    history: Option<History>,
    /// The prefetch; half of it may wait for missing events.
    prefetch: usize,
    probe: &'c Probe,
    /// Where it is noted what the queue delivers.
    serves: watch::Sender<Served>,
}

/// A projection that is followed on one connection.
#[derive(Clone, Copy)]
pub(super) struct Followed<'c> {
    pub(super) context: &'c Arc<Context>,
    pub(super) model: &'c Arc<ReadModel>,
    pub(super) connection: &'c Connection,
    /// Reports streams that wait for missing events.
    pub(super) gaps: &'c Probe,
}

/// What this instance gets from a queue.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Served {
    /// When it delivered last.
    pub(crate) last: Option<Instant>,
    /// Whether deliveries are not settled: while a slow batch has all that may be, no more come.
    pub(crate) unsettled: bool,
}

/// A stream whose deliveries wait for events before them.
struct Gap {
    wanted: StreamRange,
    pending: Vec<Pending>,
    since: Instant,
    due: Instant,
    backoff: Backoff,
}

/// What was read from the event store.
struct Reading {
    history: History,
    wanted: Vec<StreamRange>,
    result: Result<Vec<StoredEvent>, event_store::Error>,
}

impl<'c> Consumer<'c> {
    /// Starts to consume.
    pub(super) async fn open(
        projection: Followed<'c>,
        queue: &Queue,
        priority: i32,
        serves: watch::Sender<Served>,
    ) -> Result<Self, Error> {
        let Followed { context, model, connection, gaps: probe } = projection;
        let prefetch = context.settings.prefetch;
        let deliveries =
            Deliveries::open(connection, &context.broker, queue, prefetch, priority).await?;
        Ok(Self {
            context,
            model,
            deliveries,
            lanes: (0..model.lanes()).map(|_| Lane::new(context.settings.retry_max)).collect(),
            batches: JoinSet::new(),
            gaps: HashMap::new(),
            reading: JoinSet::new(),
            history: Some(History::new(context.store.clone())),
            prefetch: usize::from(prefetch),
            probe,
            serves,
        })
    }

    /// Applies deliveries until it is to stop.
    pub(crate) async fn follow(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            self.start();
            let unsettled = self.deliveries.has_unsettled();
            self.serves.send_modify(|served| served.unsettled = unsettled);
            let timer = self.timer();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(report) = self.batches.join_next() => self.settle(done(report)?).await?,
                Some(read) = self.reading.join_next() => self.fill(done(read)?).await?,
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {}
                next = self.deliveries.next(self.context.settings.batch_size) => {
                    let deliveries = next?;
                    self.serves.send_modify(|served| served.last = Some(Instant::now()));
                    for delivery in deliveries {
                        self.take_in(delivery).await?;
                    }
                }
            }
        }
    }

    /// Leaves the queue: ends what was begun, acknowledges it, and gives the rest back.
    pub(crate) async fn leave(mut self) {
        let ended = timeout(LEAVE_LIMIT, async {
            while let Some(report) = self.batches.join_next().await {
                let Ok(report) = report else { continue };
                if let Err(error) = self.settle(report).await {
                    tracing::debug!(error = chain(&error), "the last batch of a queue failed");
                }
            }
        });
        drop(ended.await);
        self.batches.shutdown().await;
        self.reading.shutdown().await;
        let mut rest: Vec<Pending> = self.gaps.drain().flat_map(|(_, gap)| gap.pending).collect();
        for lane in &mut self.lanes {
            rest.extend(lane.take_waiting());
            lane.close().await;
        }
        let receipts: Vec<Receipt> =
            rest.into_iter().filter_map(|it| it.envelope).map(Envelope::into_receipt).collect();
        if let Err(error) = self.deliveries.give_back(receipts).await {
            tracing::debug!(error = chain(&error), "giving messages back failed");
        }
        self.deliveries.close().await;
        self.serves.send_modify(|served| served.unsettled = false);
    }

    /// Begins what can be begun.
    fn start(&mut self) {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(batch) = lane.start(number, self.context, self.model) {
                self.batches.spawn(batch);
            }
        }
        let now = Instant::now();
        let due = self.gaps.values().filter(|gap| gap.due <= now);
        let wanted: Vec<StreamRange> =
            due.take(History::STREAMS_AT_ONCE).map(|gap| gap.wanted.clone()).collect();
        if !wanted.is_empty()
            && let Some(mut history) = self.history.take()
        {
            self.reading.spawn(async move {
                let result = history.read(&wanted).await;
                Reading { history, wanted, result }
            });
        }
    }

    /// When there is something to begin.
    fn timer(&self) -> Option<Instant> {
        let retries = self.lanes.iter().filter_map(Lane::retry_at);
        let gaps = self.gaps.values().map(|gap| gap.due).filter(|_| self.history.is_some());
        retries.chain(gaps).min()
    }

    /// Reads a message. One that is no event for this projection becomes a dead letter.
    async fn take_in(&mut self, delivery: Delivery) -> Result<(), Error> {
        let Delivery { message, envelope } = delivery;
        let event = message.decode().map_err(|error| error.to_string());
        match event.and_then(|event| self.for_us(event)) {
            Ok(event) => self.push(Pending { event, envelope: Some(envelope) }),
            Err(reason) => self.dead_letter(envelope, &message.body, &reason).await?,
        }
        Ok(())
    }

    /// The event, or why this projection cannot apply it: a rebuild must have the same events.
    fn for_us(&self, event: Event) -> Result<StoredEvent, String> {
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

    /// Moves a message to the dead-letter queue.
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
            "a message went to the dead-letter queue"
        );
        Ok(())
    }

    /// Settles the deliveries of a batch.
    async fn settle(&mut self, report: Report) -> Result<(), Error> {
        let lane = report.lane();
        let (batch, applied) = match self.lanes[lane].finish(report) {
            Ok(finished) => finished,
            Err(failure) => return self.failed(failure),
        };
        let mut receipts = Vec::with_capacity(batch.len());
        let mut waiting = Vec::new();
        for (pending, verdict) in batch.into_iter().zip(&applied.verdicts) {
            match verdict {
                Verdict::Gap => waiting.push(pending),
                verdict => {
                    if *verdict == Verdict::Apply {
                        self.resume(&pending.event);
                    }
                    receipts.extend(pending.envelope.map(Envelope::into_receipt));
                }
            }
        }
        self.acknowledge(receipts, &applied.committed).await?;
        let gaps: HashMap<_, _> =
            applied.gaps.into_iter().map(|gap| (gap.stream_id.clone(), gap)).collect();
        for pending in waiting {
            self.wait(pending, &gaps).await?;
        }
        Ok(())
    }

    async fn acknowledge(
        &mut self,
        receipts: Vec<Receipt>,
        committed: &Committed,
    ) -> Result<(), Error> {
        Ok(self.deliveries.ack(receipts, committed).await?)
    }

    /// After a failure, gives up when it has gone on for too long.
    fn failed(&self, failure: Failure) -> Result<(), Error> {
        let Failure { error, since } = failure;
        match error {
            ApplyError::Server(error) if since <= KEEP_LIMIT => {
                tracing::debug!(error = chain(&error), "a batch is tried again");
                self.context.metrics.lost("mysql");
                Ok(())
            }
            error => Err(error.into()),
        }
    }

    /// Lets an event wait for those before it. Too many of them go back to the event store.
    async fn wait(
        &mut self,
        pending: Pending,
        gaps: &HashMap<StreamId, StreamRange>,
    ) -> Result<(), Error> {
        let held: usize = self.gaps.values().map(|gap| gap.pending.len()).sum();
        let Some((stream_id, wanted)) = gaps.get_key_value(&pending.event.stream_id) else {
            return Ok(());
        };
        let gap = self.gaps.entry(stream_id.clone()).or_insert_with(|| Gap {
            wanted: wanted.clone(),
            pending: Vec::new(),
            since: Instant::now(),
            due: Instant::now() + GAP_WAIT,
            backoff: Backoff::new(RETRY_MIN, self.context.settings.retry_max),
        });
        gap.wanted = wanted.clone();
        if held < self.prefetch / 2 {
            gap.pending.push(pending);
            return Ok(());
        }
        self.context.metrics.count(self.model.name(), Outcome::Deferred, 1);
        let receipts = pending.envelope.map(Envelope::into_receipt).into_iter().collect();
        Ok(self.deliveries.defer(receipts).await?)
    }

    /// After an event was applied, those of its stream that waited are tried again.
    fn resume(&mut self, event: &StoredEvent) {
        let gap = self.gaps.remove(&event.stream_id);
        for pending in gap.into_iter().flat_map(|gap| gap.pending) {
            self.push(pending);
        }
        if self.gaps.is_empty() {
            self.probe.ok();
        }
    }

    /// Takes what was read from the event store: the missing events, then those that waited for them.
    async fn fill(&mut self, reading: Reading) -> Result<(), Error> {
        let Reading { history, wanted, result } = reading;
        self.history = Some(history);
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                return self.defer_gaps(&wanted, &chain(&error)).await;
            }
        };
        for wanted in wanted {
            let Some(gap) = self.gaps.remove(&wanted.stream_id) else { continue };
            let own = found.iter().filter(|event| event.stream_id == wanted.stream_id);
            if own.clone().any(|event| event.version == wanted.from) {
                for event in own.cloned() {
                    self.push(Pending { event, envelope: None });
                }
                for pending in gap.pending {
                    self.push(pending);
                }
            } else {
                self.refuse(&wanted, gap.pending).await?;
            }
        }
        if self.gaps.is_empty() {
            self.probe.ok();
        }
        Ok(())
    }

    /// The event store cannot be asked: only the streams with gaps wait. After a while their
    /// deliveries are let go, lest they hold up another instance that is to have this queue.
    async fn defer_gaps(&mut self, wanted: &[StreamRange], reason: &str) -> Result<(), Error> {
        let now = Instant::now();
        let mut old = Vec::new();
        for wanted in wanted {
            if let Some(gap) = self.gaps.get_mut(&wanted.stream_id) {
                gap.due = now + gap.backoff.failed();
                if now - gap.since > KEEP_LIMIT {
                    old.append(&mut gap.pending);
                }
            }
        }
        self.context.metrics.lost("postgresql");
        self.probe.failing(&format!(
            "{} streams wait for missing events; the event store cannot be asked: {reason}",
            self.gaps.len()
        ));
        let receipts: Vec<Receipt> =
            old.into_iter().filter_map(|it| it.envelope).map(Envelope::into_receipt).collect();
        self.context.metrics.count(self.model.name(), Outcome::Deferred, receipts.len());
        Ok(self.deliveries.defer(receipts).await?)
    }

    /// Dead-letters what claims versions that the event store does not lead up to.
    async fn refuse(&mut self, wanted: &StreamRange, pending: Vec<Pending>) -> Result<(), Error> {
        for Pending { event, envelope } in pending {
            let Some(envelope) = envelope else { continue };
            let StoredEvent { stream_id, version, .. } = &event;
            let reason = format!(
                "version {version} of stream {stream_id} cannot follow: the event store has no \
                 version {}",
                wanted.from
            );
            self.dead_letter(envelope, event.data.as_str().as_bytes(), &reason).await?;
        }
        Ok(())
    }
}

/// What a task gives; it does not panic, and nobody aborts it before the end.
fn done<T>(result: Result<T, JoinError>) -> Result<T, Error> {
    result.map_err(|_aborted| Error::Stopped)
}
