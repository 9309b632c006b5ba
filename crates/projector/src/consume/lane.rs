//! A lane applies the events of some streams: one batch after another, each in one transaction.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use broker::Envelope;
use daemon::backoff::Backoff;
use domain_events::{EventId, StoredEvent};
use projection::plan::Verdict;
use read_model::{Applied, ReadModel, Session};
use tokio::time::Instant;

use crate::context::Context;
use crate::error::Error;
use crate::history::{History, follow_in_order};
use crate::metrics::Healing;

/// The first pause after a failed batch.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The most bytes of payload in a batch. A single larger event is a batch of its own.
const BATCH_BYTES: usize = 8 << 20;

/// An event whose delivery is not settled.
pub(crate) struct Pending {
    pub(crate) event: StoredEvent,
    /// Settles the delivery; `None` for an event from the event store.
    pub(crate) envelope: Option<Envelope>,
}

/// The queue of waiting events, and the worker that applies them.
pub(crate) struct Lane {
    waiting: VecDeque<Pending>,
    /// `None` while it applies a batch.
    worker: Option<Worker>,
    /// The end of the pause after a failure.
    retry_at: Option<Instant>,
}

/// Applies batches. It reconnects after a failure.
struct Worker {
    session: Option<Session>,
    /// The event store, for a projection that needs its order, and for deliveries that are compared with it.
    history: Option<History>,
    backoff: Backoff,
    /// Since when every batch has failed.
    failing: Option<Instant>,
}

/// The result of a batch.
pub(crate) struct Report {
    lane: usize,
    worker: Worker,
    batch: Vec<Pending>,
    /// The deliveries whose events the event store has lost. They are not in the batch.
    lost: Vec<Pending>,
    result: Result<Applied, Error>,
}

/// A batch that was applied, and the deliveries whose events the event store has lost.
pub(crate) struct Finished {
    pub(crate) batch: Vec<Pending>,
    pub(crate) applied: Applied,
    pub(crate) lost: Vec<Pending>,
}

/// A batch failed and waits for another attempt.
pub(crate) struct Failure {
    /// The cause.
    pub(crate) error: Box<Error>,
    /// For how long every batch of the lane has failed.
    pub(crate) since: Duration,
}

impl Lane {
    pub(crate) fn new(retry_max: Duration) -> Self {
        let backoff = Backoff::new(RETRY_MIN, retry_max);
        let worker = Worker { session: None, history: None, backoff, failing: None };
        Self { waiting: VecDeque::new(), worker: Some(worker), retry_at: None }
    }

    /// Adds an event.
    pub(crate) fn push(&mut self, pending: Pending) {
        self.waiting.push_back(pending);
    }

    /// The time of the next attempt, if events wait for one.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.worker.is_some() && !self.waiting.is_empty())
    }

    /// Starts the next batch if events wait, unless a batch or a pause is running. A batch takes all waiting
    /// events, within limits. So a single event is applied at once, and events that arrive meanwhile form
    /// the next batch.
    pub(crate) fn start(
        &mut self,
        lane: usize,
        context: &Arc<Context>,
        model: &Arc<ReadModel>,
    ) -> Option<impl Future<Output = Report> + Send + use<>> {
        if self.waiting.is_empty() || self.retry_at.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        let worker = self.worker.take()?;
        self.retry_at = None;
        let mut bytes = 0;
        let fits = |pending: &&Pending| {
            bytes += pending.event.data.as_str().len();
            bytes <= BATCH_BYTES
        };
        let count = self.waiting.iter().take(context.settings.batch_size).take_while(fits).count();
        let batch: Vec<Pending> = self.waiting.drain(..count.max(1)).collect();
        let (context, model) = (Arc::clone(context), Arc::clone(model));
        Some(async move { worker.apply(lane, &context, &model, batch).await })
    }

    /// Takes the worker back and returns the result of its batch. After a failure, the batch waits again.
    pub(crate) fn finish(&mut self, report: Report) -> Result<Finished, Failure> {
        let Report { mut worker, batch, lost, result, .. } = report;
        let outcome = match result {
            Ok(applied) => {
                worker.backoff.succeeded();
                worker.failing = None;
                Ok(Finished { batch, applied, lost })
            }
            Err(error) => {
                let now = Instant::now();
                let since = now - *worker.failing.get_or_insert(now);
                self.retry_at = Some(now + worker.backoff.failed());
                for pending in lost.into_iter().chain(batch).rev() {
                    self.waiting.push_front(pending);
                }
                Err(Failure { error: Box::new(error), since })
            }
        };
        self.worker = Some(worker);
        outcome
    }

    /// Removes all events whose batch has not started.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = Pending> {
        self.waiting.drain(..)
    }

    /// Closes the connection to MySQL.
    pub(crate) async fn close(&mut self) {
        if let Some(session) = self.worker.as_mut().and_then(|worker| worker.session.take()) {
            session.close().await;
        }
    }
}

impl Report {
    /// The lane of the batch.
    pub(crate) fn lane(&self) -> usize {
        self.lane
    }
}

impl Worker {
    async fn apply(
        mut self,
        lane: usize,
        context: &Context,
        model: &ReadModel,
        mut batch: Vec<Pending>,
    ) -> Report {
        let (lost, result) = match self.take_lost(context, model, &mut batch).await {
            Ok(lost) => (lost, self.try_apply(context, model, &batch).await),
            Err(error) => (Vec::new(), Err(error)),
        };
        if let Ok(applied) = &result {
            self.count_healed(context, model, &batch, applied).await;
        }
        Report { lane, worker: self, batch, lost, result }
    }

    /// Takes the deliveries out of a batch whose events the event store has lost. They are looked for only while
    /// such deliveries may be in the queues: see [`ReadModel::compared_until`].
    async fn take_lost(
        &mut self,
        context: &Context,
        model: &ReadModel,
        batch: &mut Vec<Pending>,
    ) -> Result<Vec<Pending>, Error> {
        let until = model.compared_until();
        let is_compared = |it: &&Pending| it.envelope.is_some() && until >= Some(it.event.position);
        let compared = || batch.iter().filter(is_compared).map(|it| &it.event);
        let places: Vec<_> = compared().map(|event| (&event.stream_id, event.version)).collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let new = || History::new(context.store.clone());
        let stored = self.history.get_or_insert_with(new).event_ids(&places).await?;
        let is_lost = |(event, stored): &(&StoredEvent, _)| *stored != Some(event.event_id.uuid());
        let lost: HashSet<EventId> =
            compared().zip(stored).filter(is_lost).map(|(event, _)| event.event_id).collect();
        let (lost, rest) = std::mem::take(batch)
            .into_iter()
            .partition(|it| it.envelope.is_some() && lost.contains(&it.event.event_id));
        *batch = rest;
        Ok(lost)
    }

    async fn count_healed(
        &mut self,
        context: &Context,
        model: &ReadModel,
        batch: &[Pending],
        applied: &Applied,
    ) {
        let from_store = batch
            .iter()
            .zip(&applied.verdicts)
            .filter(|(pending, verdict)| pending.envelope.is_none() && **verdict == Verdict::Apply);
        let healed = from_store.count();
        context.metrics.healed(model.name(), Healing::Gap, healed);
        if healed > 0
            && let Some(mut session) = self.session.take()
            && session.add_healed(&model.ledger, healed).await.is_ok()
        {
            self.session = Some(session);
        }
    }

    async fn try_apply(
        &mut self,
        context: &Context,
        model: &ReadModel,
        batch: &[Pending],
    ) -> Result<Applied, Error> {
        let mut session = match self.session.take() {
            Some(session) => session.or_new(&context.mysql).await?,
            None => Session::connect(&context.mysql).await?,
        };
        let events: Vec<&StoredEvent> = batch.iter().map(|pending| &pending.event).collect();
        if model.is_ordered()
            && let Some(needed) = events.iter().map(|event| event.position).max()
        {
            let new = || History::new(context.store.clone());
            let history = self.history.get_or_insert_with(new);
            follow_in_order(context, history, (&mut session, model), needed).await?;
        }
        let applied = context.apply(&mut session, model, &events).await?;
        self.session = Some(session);
        Ok(applied)
    }
}
