//! Following the queue.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use broker::{Connection, Delivery, Envelope, Queue};
use daemon::backoff::Backoff;
use daemon::{Probe, chain};
use domain_events::{StreamId, StreamVersion};
use event_store::Wanted;
use tokio::time::{Instant, sleep, sleep_until};

use crate::apply::{ApplyError, ReadModel};
use crate::context::Context;
use crate::history::History;
use crate::inbox::Inbox;
use crate::metrics::{Healing, Outcome};
use crate::mysql::{self, Committed, Session};
use crate::sequence::Verdict;
use crate::stream_event::StreamEvent;
use crate::trouble::Trouble;

/// How long deliveries are kept while MySQL does not take them; then another instance may.
const KEEP_LIMIT: Duration = Duration::from_secs(3);
/// The first pause of a stream or a server that failed.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// Applies what a queue delivers to one read model.
pub(crate) struct Live<'c> {
    context: &'c Context,
    model: &'c ReadModel,
    session: Option<Session>,
    history: History,
    inbox: Inbox,
    pending: Vec<Pending>,
    rejected: VecDeque<Rejected>,
    held: HashMap<StreamId, Held>,
    /// Since when MySQL has taken nothing.
    failing: Option<(Instant, Backoff)>,
    streams: &'c Probe,
    /// Whether a batch was ever applied.
    productive: bool,
}

/// A delivery that is not settled.
struct Pending {
    event: StreamEvent,
    envelope: Envelope,
}

/// A delivery for the dead-letter queue.
struct Rejected {
    envelope: Envelope,
    body: Vec<u8>,
    reason: String,
}

/// A stream that waits before it is tried again.
struct Held {
    /// The event that cannot be applied; those before it can.
    from: StreamVersion,
    until: Instant,
    backoff: Backoff,
}

impl<'c> Live<'c> {
    /// Starts to consume.
    pub(crate) async fn open(
        context: &'c Context,
        model: &'c ReadModel,
        session: Session,
        connection: &Connection,
        queue: &Queue,
        streams: &'c Probe,
    ) -> Result<Self, Trouble> {
        let prefetch = context.settings.prefetch;
        let inbox = Inbox::open(connection, &context.broker, queue, prefetch).await?;
        streams.ok();
        Ok(Self {
            context,
            model,
            session: Some(session),
            history: History::new(context.store.clone()),
            inbox,
            pending: Vec::new(),
            rejected: VecDeque::new(),
            held: HashMap::new(),
            failing: None,
            streams,
            productive: false,
        })
    }

    /// Applies deliveries until shutdown. What is not applied then, or at an error, goes back.
    ///
    /// Says also whether anything was applied.
    pub(crate) async fn follow(mut self) -> (Result<(), Trouble>, bool) {
        let result = self.work().await;
        let pending = self.pending.drain(..).map(|pending| pending.envelope.into_receipt());
        let rejected = self.rejected.drain(..).map(|rejected| rejected.envelope.into_receipt());
        if let Err(error) = self.inbox.give_back(pending.chain(rejected).collect()).await {
            tracing::debug!(error = chain(&error), "giving messages back failed");
        }
        if let Some(session) = self.session {
            session.close().await;
        }
        (result, self.productive)
    }

    async fn work(&mut self) -> Result<(), Trouble> {
        let shutdown = self.context.shutdown.clone();
        loop {
            let retry = self.next_retry();
            let deliveries = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                    Vec::new()
                }
                next = self.inbox.next(self.context.settings.batch_size) => next?,
            };
            for delivery in deliveries {
                self.take_in(delivery);
            }
            self.settle().await?;
            self.put_off().await?;
            self.dead_letter().await?;
        }
    }

    /// Reads a message; what is not an event of a stream becomes a dead letter.
    fn take_in(&mut self, delivery: Delivery) {
        let Delivery { message, envelope } = delivery;
        let reason = match message.decode() {
            Ok(event) => match StreamEvent::try_from(event) {
                Ok(event) => {
                    self.pending.push(Pending { event, envelope });
                    return;
                }
                Err(unversioned) => unversioned.to_string(),
            },
            Err(error) => error.to_string(),
        };
        self.rejected.push_back(Rejected { envelope, body: message.body, reason });
    }

    /// Moves what was rejected to the dead-letter queue.
    async fn dead_letter(&mut self) -> Result<(), Trouble> {
        while let Some(rejected) = self.rejected.pop_front() {
            let Rejected { envelope, body, reason } = rejected;
            let moved = self.inbox.dead_letter(&envelope, &body, &reason).await;
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
        }
        Ok(())
    }

    /// Of the streams that wait, one delivery each is kept to try again, and of not too many streams.
    async fn put_off(&mut self) -> Result<(), Trouble> {
        let limit = usize::from(self.context.settings.prefetch / 2);
        let mut first: HashMap<&StreamId, StreamVersion> = HashMap::new();
        for Pending { event, .. } in &self.pending {
            if self.held.contains_key(&event.stream_id)
                && (first.len() < limit || first.contains_key(&event.stream_id))
            {
                let version = first.entry(&event.stream_id).or_insert(event.version);
                *version = event.version.min(*version);
            }
        }
        let is_kept = |event: &StreamEvent| {
            !self.held.contains_key(&event.stream_id)
                || first.get(&event.stream_id) == Some(&event.version)
        };
        let kept: Vec<bool> = self.pending.iter().map(|pending| is_kept(&pending.event)).collect();
        let mut receipts = Vec::new();
        for (pending, kept) in std::mem::take(&mut self.pending).into_iter().zip(kept) {
            if kept {
                self.pending.push(pending);
            } else {
                receipts.push(pending.envelope.into_receipt());
            }
        }
        if receipts.is_empty() {
            return Ok(());
        }
        self.context.metrics.count(self.model.name(), Outcome::PutOff, receipts.len());
        Ok(self.inbox.put_off(receipts).await?)
    }

    /// Applies what is pending and need not wait.
    async fn settle(&mut self) -> Result<(), Trouble> {
        loop {
            let now = Instant::now();
            let held = &self.held;
            let is_ready = |Pending { event, .. }: &Pending| {
                held.get(&event.stream_id)
                    .is_none_or(|held| held.until <= now || event.version < held.from)
            };
            let mut ready: Vec<usize> =
                (0..self.pending.len()).filter(|index| is_ready(&self.pending[*index])).collect();
            ready.truncate(self.context.settings.batch_size);
            if ready.is_empty() {
                self.forget_settled();
                return Ok(());
            }
            self.apply(&ready).await?;
            if self.context.shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    async fn apply(&mut self, ready: &[usize]) -> Result<(), Trouble> {
        let mut session = match self.connected().await {
            Ok(session) => session,
            Err(error) => return self.pause(error).await,
        };
        let events: Vec<&StreamEvent> =
            ready.iter().map(|index| &self.pending[*index].event).collect();
        match self.context.apply(&mut session, self.model, &events).await {
            Ok(applied) => {
                self.session = Some(session);
                self.failing = None;
                self.productive = true;
                let (verdicts, gaps) = (applied.plan.verdicts, applied.plan.gaps);
                self.acknowledge(ready, &verdicts, &applied.committed).await?;
                if gaps.is_empty() { Ok(()) } else { self.heal(gaps).await }
            }
            Err(ApplyError::Event(fault)) => {
                self.session = Some(session);
                self.hold(&fault.stream_id, fault.version, &chain(&fault));
                Ok(())
            }
            Err(ApplyError::Server(error)) => self.pause(error).await,
        }
    }

    /// Settles what was applied, or had been before.
    async fn acknowledge(
        &mut self,
        ready: &[usize],
        verdicts: &[Verdict],
        committed: &Committed,
    ) -> Result<(), Trouble> {
        let verdicts: HashMap<usize, Verdict> =
            ready.iter().copied().zip(verdicts.iter().copied()).collect();
        let mut receipts = Vec::with_capacity(ready.len());
        let mut conflicts = Vec::new();
        for (index, pending) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            match verdicts.get(&index) {
                Some(Verdict::Apply | Verdict::Duplicate) => {
                    self.held.remove(&pending.event.stream_id);
                    receipts.push(pending.envelope.into_receipt());
                }
                Some(Verdict::Conflict { applied }) => conflicts.push((pending, *applied)),
                Some(Verdict::Gap) | None => self.pending.push(pending),
            }
        }
        self.inbox.ack(receipts, committed).await?;
        for (Pending { event, envelope }, applied) in conflicts {
            let reason = format!(
                "conflict: version {} of stream {} was applied as event {applied}, not {}",
                event.version, event.stream_id, event.event.event_id
            );
            self.context.metrics.count(self.model.name(), Outcome::Conflict, 1);
            let body = event.event.data.as_str().as_bytes().to_vec();
            self.rejected.push_back(Rejected { envelope, body, reason });
        }
        Ok(())
    }

    /// Reads what is missing from the event store and applies it. What is pending is tried again
    /// afterwards.
    async fn heal(&mut self, gaps: Vec<Wanted>) -> Result<(), Trouble> {
        let found = match self.history.read(&gaps).await {
            Ok(found) => found,
            Err(error) => {
                let reason = chain(&error);
                for gap in &gaps {
                    self.hold(&gap.stream_id, gap.from, &reason);
                }
                return Ok(());
            }
        };
        let begun: HashSet<_> =
            found.iter().map(|event| (&event.stream_id, event.version)).collect();
        let unknown: Vec<&Wanted> = gaps
            .iter()
            .take(History::STREAMS_AT_ONCE)
            .filter(|gap| !begun.contains(&(&gap.stream_id, gap.from)))
            .collect();
        for gap in unknown {
            self.refuse(gap);
        }
        let mut session = match self.connected().await {
            Ok(session) => session,
            Err(error) => return self.pause(error).await,
        };
        match self.context.heal(&mut session, self.model, &found, Healing::Gap).await {
            Ok(events) => {
                self.session = Some(session);
                tracing::info!(
                    projection = self.model.name(),
                    events,
                    "missing events were read from the event store"
                );
                Ok(())
            }
            Err(ApplyError::Event(fault)) => {
                self.session = Some(session);
                self.hold(&fault.stream_id, fault.version, &chain(&fault));
                Ok(())
            }
            Err(ApplyError::Server(error)) => self.pause(error).await,
        }
    }

    /// Dead-letters what claims a version that the event store does not lead up to.
    fn refuse(&mut self, gap: &Wanted) {
        for pending in std::mem::take(&mut self.pending) {
            let Pending { event, envelope } = pending;
            if event.stream_id != gap.stream_id || event.version < gap.from {
                self.pending.push(Pending { event, envelope });
                continue;
            }
            let reason = format!(
                "version {} of stream {} cannot follow: the event store has no version {}",
                event.version, event.stream_id, gap.from
            );
            let body = event.event.data.as_str().as_bytes().to_vec();
            self.rejected.push_back(Rejected { envelope, body, reason });
        }
    }

    /// Lets a stream wait from a version on, while the others go on.
    fn hold(&mut self, stream_id: &StreamId, from: StreamVersion, reason: &str) {
        let first = || Held {
            from,
            until: Instant::now(),
            backoff: Backoff::new(RETRY_MIN, self.context.settings.retry_max),
        };
        if !self.held.contains_key(stream_id) {
            tracing::error!(
                projection = self.model.name(),
                stream = stream_id.as_str(),
                reason,
                "a stream waits; the others go on"
            );
        }
        let held = self.held.entry(stream_id.clone()).or_insert_with(first);
        held.from = from;
        held.until = Instant::now() + held.backoff.failed();
        self.streams.failing(&format!("{} streams wait, one because: {reason}", self.held.len()));
    }

    /// A stream with nothing pending waits no longer.
    fn forget_settled(&mut self) {
        let pending: HashSet<&StreamId> =
            self.pending.iter().map(|pending| &pending.event.stream_id).collect();
        self.held.retain(|stream_id, _| pending.contains(stream_id));
        self.context.metrics.waiting(self.model.name(), self.held.len());
        if self.held.is_empty() {
            self.streams.ok();
        }
    }

    /// Waits before MySQL is tried again; gives up when that has gone on for too long.
    async fn pause(&mut self, error: mysql::Error) -> Result<(), Trouble> {
        let retry_max = self.context.settings.retry_max;
        let (since, backoff) = self
            .failing
            .get_or_insert_with(|| (Instant::now(), Backoff::new(RETRY_MIN, retry_max)));
        if since.elapsed() > KEEP_LIMIT {
            return Err(Trouble::ReadModel(error));
        }
        let wait = backoff.failed();
        tracing::debug!(error = chain(&error), "a batch is tried again");
        self.context.metrics.lost("mysql");
        self.context.shutdown.run_until_cancelled(sleep(wait)).await;
        Ok(())
    }

    /// The session, or a new one.
    async fn connected(&mut self) -> Result<Session, mysql::Error> {
        if let Some(mut session) = self.session.take()
            && session.is_usable().await
        {
            return Ok(session);
        }
        Session::connect(&self.context.mysql).await
    }

    fn next_retry(&self) -> Option<Instant> {
        let waiting = self.pending.iter().map(|pending| &pending.event.stream_id);
        waiting.filter_map(|stream_id| self.held.get(stream_id)).map(|held| held.until).min()
    }
}
