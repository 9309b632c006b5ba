//! Following a queue.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use broker::{Connection, Delivery, Envelope, Queue, Receipt};
use daemon::backoff::Backoff;
use daemon::{CancellationToken, Probe, chain};
use domain_events::{Event, StreamId};
use event_store::Wanted;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::apply::{ApplyError, ReadModel};
use crate::context::Context;
use crate::history::History;
use crate::inbox::Inbox;
use crate::lane::{Failure, Lane, Pending, Report};
use crate::metrics::Outcome;
use crate::mysql::{Committed, Passage};
use crate::partition::Served;
use crate::sequence::Verdict;
use crate::trouble::Trouble;

/// How long deliveries are kept while MySQL does not take them; then another instance may.
const KEEP_LIMIT: Duration = Duration::from_secs(3);
/// How long to wait for missing events to be delivered, before the event store is asked.
const GAP_WAIT: Duration = Duration::from_millis(50);
/// The first pause when the event store cannot be asked.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// How long batches may take to end when the queue is left.
const LEAVE_LIMIT: Duration = Duration::from_secs(6);

/// Applies what a queue delivers to one read model.
pub(crate) struct Live<'c> {
    context: &'c Arc<Context>,
    model: &'c Arc<ReadModel>,
    inbox: Inbox,
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
    /// Told what the queue gives.
    serves: watch::Sender<Served>,
}

/// A stream whose deliveries wait for events before them.
struct Gap {
    wanted: Wanted,
    pending: Vec<Pending>,
    since: Instant,
    due: Instant,
    backoff: Backoff,
}

/// What was read from the event store.
struct Reading {
    history: History,
    wanted: Vec<Wanted>,
    result: Result<Vec<Event>, event_store::Error>,
}

impl<'c> Live<'c> {
    /// Starts to consume.
    pub(crate) async fn open(
        context: &'c Arc<Context>,
        model: &'c Arc<ReadModel>,
        connection: &Connection,
        queue: &Queue,
        priority: i32,
        probe: &'c Probe,
        serves: watch::Sender<Served>,
    ) -> Result<Self, Trouble> {
        let settings = &context.settings;
        let inbox =
            Inbox::open(connection, &context.broker, queue, settings.prefetch, priority).await?;
        let lanes = match model.forms().passage() {
            Passage::Shared => model.projection.lanes,
            // Two would only wait for each other.
            Passage::Alone => 1,
        };
        Ok(Self {
            context,
            model,
            inbox,
            lanes: (0..lanes).map(|_| Lane::new(settings.retry_max)).collect(),
            batches: JoinSet::new(),
            gaps: HashMap::new(),
            reading: JoinSet::new(),
            history: Some(History::new(context.store.clone())),
            prefetch: usize::from(settings.prefetch),
            probe,
            serves,
        })
    }

    /// Applies deliveries until it is to stop.
    pub(crate) async fn follow(&mut self, stop: &CancellationToken) -> Result<(), Trouble> {
        loop {
            self.start();
            let unsettled = self.inbox.has_unsettled();
            self.serves.send_modify(|served| served.unsettled = unsettled);
            let timer = self.timer();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(report) = self.batches.join_next() => self.settle(done(report)?).await?,
                Some(read) = self.reading.join_next() => self.fill(done(read)?).await?,
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {}
                next = self.inbox.next(self.context.settings.batch_size) => {
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
        if let Err(error) = self.inbox.give_back(receipts).await {
            tracing::debug!(error = chain(&error), "giving messages back failed");
        }
        self.inbox.close().await;
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
        let wanted: Vec<Wanted> =
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

    /// Reads a message; what is not an event for this projection becomes a dead letter.
    async fn take_in(&mut self, delivery: Delivery) -> Result<(), Trouble> {
        let Delivery { message, envelope } = delivery;
        let event = match message.decode() {
            Ok(event) => event,
            Err(error) => {
                return self.dead_letter(envelope, &message.body, &error.to_string()).await;
            }
        };
        if let Some(category) = self.unfollowed(&event) {
            let reason = format!("this projection does not follow category {category}");
            return self.dead_letter(envelope, &message.body, &reason).await;
        }
        self.push(Pending { event, envelope: Some(envelope) });
        Ok(())
    }

    /// The category of an event of the event store, if it was led here by a routing key of another. Its
    /// effect would be in no read model that is built anew.
    fn unfollowed<'e>(&self, event: &'e Event) -> Option<&'e str> {
        let (stream_id, _) = event.place()?;
        let category = stream_id.category();
        let followed = &self.model.projection.categories;
        (!followed.iter().any(|known| known.as_str() == category)).then_some(category)
    }

    fn push(&mut self, pending: Pending) {
        let mut hasher = DefaultHasher::new();
        match pending.event.stream_id() {
            Some(stream_id) => stream_id.as_str().hash(&mut hasher),
            None => pending.event.event_id.uuid().hash(&mut hasher),
        }
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
    ) -> Result<(), Trouble> {
        let moved = self.inbox.dead_letter(&envelope, body, reason).await;
        let receipts = vec![envelope.into_receipt()];
        if let Err(error) = moved {
            self.inbox.give_back(receipts).await?;
            return Err(error.into());
        }
        self.inbox.ack_dead_letters(receipts).await?;
        self.context.metrics.count(self.model.name(), Outcome::DeadLettered, 1);
        tracing::warn!(
            projection = self.model.name(),
            reason,
            "a message went to the dead-letter queue"
        );
        Ok(())
    }

    /// Settles the deliveries of a batch.
    async fn settle(&mut self, report: Report) -> Result<(), Trouble> {
        let lane = report.lane();
        let (batch, mut applied) = match self.lanes[lane].finish(report) {
            Ok(finished) => finished,
            Err(failure) => return self.failed(failure),
        };
        let mut receipts = Vec::with_capacity(batch.len());
        let mut waiting = Vec::new();
        for (index, (pending, verdict)) in batch.into_iter().zip(&applied.verdicts).enumerate() {
            let Pending { event, envelope } = pending;
            match (verdict, applied.refused.remove(&index), envelope) {
                (Verdict::Gap, _, envelope) => waiting.push(Pending { event, envelope }),
                (_, Some(reason), Some(envelope)) => {
                    let body = event.data.as_str().as_bytes();
                    self.dead_letter(envelope, body, &reason).await?;
                }
                (_, _, envelope) => {
                    if *verdict == Verdict::Apply {
                        self.resume(&event);
                    }
                    receipts.extend(envelope.map(Envelope::into_receipt));
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
    ) -> Result<(), Trouble> {
        Ok(self.inbox.ack(receipts, committed).await?)
    }

    /// After a failure, gives up when it has gone on for too long.
    fn failed(&self, failure: Failure) -> Result<(), Trouble> {
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
        gaps: &HashMap<StreamId, Wanted>,
    ) -> Result<(), Trouble> {
        let held: usize = self.gaps.values().map(|gap| gap.pending.len()).sum();
        let stream_id = pending.event.stream_id();
        let Some((stream_id, wanted)) = stream_id.and_then(|id| gaps.get_key_value(id)) else {
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
        self.context.metrics.count(self.model.name(), Outcome::PutOff, 1);
        let receipts = pending.envelope.map(Envelope::into_receipt).into_iter().collect();
        Ok(self.inbox.put_off(receipts).await?)
    }

    /// After an event was applied, those of its stream that waited are tried again.
    fn resume(&mut self, event: &Event) {
        let gap = event.stream_id().and_then(|stream_id| self.gaps.remove(stream_id));
        for pending in gap.into_iter().flat_map(|gap| gap.pending) {
            self.push(pending);
        }
        if self.gaps.is_empty() {
            self.probe.ok();
        }
    }

    /// Takes what was read from the event store: the missing events, then those that waited for them.
    async fn fill(&mut self, reading: Reading) -> Result<(), Trouble> {
        let Reading { history, wanted, result } = reading;
        self.history = Some(history);
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                return self.put_off_gaps(&wanted, &chain(&error)).await;
            }
        };
        for wanted in wanted {
            let Some(gap) = self.gaps.remove(&wanted.stream_id) else { continue };
            let first = (&wanted.stream_id, wanted.from);
            if found.iter().any(|event| event.place() == Some(first)) {
                let own = found.iter().filter(|event| event.stream_id() == Some(&wanted.stream_id));
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
    async fn put_off_gaps(&mut self, wanted: &[Wanted], reason: &str) -> Result<(), Trouble> {
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
        self.context.metrics.count(self.model.name(), Outcome::PutOff, receipts.len());
        Ok(self.inbox.put_off(receipts).await?)
    }

    /// Dead-letters what claims versions that the event store does not lead up to.
    async fn refuse(&mut self, wanted: &Wanted, pending: Vec<Pending>) -> Result<(), Trouble> {
        for Pending { event, envelope } in pending {
            let (Some((stream_id, version)), Some(envelope)) = (event.place(), envelope) else {
                continue;
            };
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
fn done<T>(result: Result<T, JoinError>) -> Result<T, Trouble> {
    result.map_err(|_aborted| Trouble::Stopped)
}
