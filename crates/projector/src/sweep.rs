//! Finding what was lost on the way.
//!
//! A gap shows when a later event of its stream arrives; a lost *last* event never does. So every
//! few seconds the heads of streams in the event store are compared with the bookkeeping, from a
//! checkpoint up to what the relay has published. Only the sweeper, and the replay before the first
//! delivery, move the checkpoint: up to it, every event is known to be applied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Connection;
use chrono::Utc;
use daemon::{Failure, Health, Probe, chain};
use domain_events::{Position, StreamId, StreamVersion};
use event_store::{StreamHead, Wanted};
use tokio::time::sleep;
use uuid::Uuid;

use crate::Settings;
use crate::apply::ReadModel;
use crate::context::Context;
use crate::history::History;
use crate::metrics::Healing;
use crate::mysql::{Instance, Session};
use crate::topology::Topology;
use crate::trouble::Trouble;
use crate::unserved::Unserved;

/// Positions compared at once.
const WINDOW: i64 = 20_000;
/// How long to wait for open appends before the sweep is put off.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
/// While the queue is not empty, a missing event may still be in it; but not for ever.
const GRACES_IN_QUEUE: u32 = 12;
/// A lag of this age without progress is not healthy.
const LAG_LIMIT: Duration = Duration::from_mins(1);
/// MySQL ends a session that lies idle for longer than a minute.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Sweeps all projections of this instance until shutdown.
pub(crate) async fn sweep(
    context: Arc<Context>,
    models: Vec<Arc<ReadModel>>,
    health: Health,
) -> Result<(), Failure> {
    let probe = health.probe("sweeper", None);
    probe.ok();
    let Settings { sweep_interval: interval, sweep_grace: grace, .. } = context.settings;
    let unserved = Unserved::new(grace, interval);
    let states = models.into_iter().map(|it| State::new(it, &health, unserved.clone())).collect();
    let mut sweeper = Sweeper {
        history: History::new(context.store.clone()),
        session: None,
        connection: None,
        context: &context,
        states,
    };
    while context.shutdown.run_until_cancelled(sleep(interval)).await.is_some() {
        match context.shutdown.run_until_cancelled(sweeper.round()).await {
            None => break,
            Some(Ok(())) => probe.ok(),
            Some(Err(trouble)) => probe.failing(&chain(&trouble)),
        }
        if interval > IDLE_LIMIT {
            sweeper.disconnect();
        }
    }
    Ok(())
}

struct Sweeper<'c> {
    context: &'c Context,
    history: History,
    session: Option<Session>,
    connection: Option<Connection>,
    states: Vec<State>,
}

/// What is known of one projection.
struct State {
    model: Arc<ReadModel>,
    /// Tells the tables that it knows of from others.
    epoch: Option<Uuid>,
    /// Up to here it was looked at.
    seen: Option<Position>,
    /// Windows with streams that are behind: from after where, up to where.
    open: BTreeMap<Position, Position>,
    /// Streams that are behind: where they stood, and since when.
    behind: HashMap<StreamId, (i64, Instant)>,
    /// When the queues were last seen empty.
    drained: Option<Instant>,
    unserved: Unserved,
    probe: Probe,
}

/// A stream whose bookkeeping is behind the event store.
#[derive(Clone)]
struct Behind {
    head: StreamHead,
    applied: i64,
}

/// How far the event store is.
#[derive(Clone, Copy)]
struct Limits {
    /// Every event up to here is decided.
    decided: Position,
    /// And published, as far as the relay is concerned.
    published: Position,
}

impl Sweeper<'_> {
    fn disconnect(&mut self) {
        self.history.forget();
        self.session = None;
        self.connection = None;
    }

    /// Looks at every projection; trouble with one does not keep it from the others.
    async fn round(&mut self) -> Result<(), Trouble> {
        let mut states = std::mem::take(&mut self.states);
        let mut result = Ok(());
        match self.limits().await {
            Ok(limits) => {
                for state in &mut states {
                    if let Err(trouble) = self.sweep(state, limits).await {
                        // With the session goes what it owned.
                        state.leave();
                        self.history.forget();
                        self.session = None;
                        self.connection = None;
                        result = Err(trouble);
                    }
                }
            }
            Err(trouble) => result = Err(trouble),
        }
        self.states = states;
        result
    }

    async fn limits(&mut self) -> Result<Limits, Trouble> {
        let decided = self.history.decided(FENCE_PATIENCE).await??;
        let pending = self.history.session().await?.lowest_pending_position().await?;
        let before = pending.and_then(|position| Position::new(position.get() - 1).ok());
        Ok(Limits { decided, published: before.map_or(decided, |before| before.min(decided)) })
    }

    async fn sweep(&mut self, state: &mut State, limits: Limits) -> Result<(), Trouble> {
        let model = Arc::clone(&state.model);
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.context.mysql).await?,
        };
        let checkpoint = session.checkpoint(&model.ledger).await?;
        // Other tables lack other events.
        if let Some(checkpoint) = checkpoint.filter(|it| state.epoch != Some(it.epoch)) {
            state.epoch = Some(checkpoint.epoch);
            state.forget();
        }
        // Before its first replay there is nothing to sweep, and during a replay nobody does.
        let position = checkpoint.filter(|it| it.replay_until.is_none()).map(|it| it.position);
        let owned = if position.is_some() {
            session.try_own(model.name()).await?
        } else {
            session.disown(model.name()).await?;
            false
        };
        let (parked, conflicts) = session.count_parked(&model.ledger).await?;
        self.context.metrics.parked(model.name(), parked, conflicts);
        let inbox_age = self.context.settings.inbox_retention;
        let pruned = session.prune_inbox(&model.ledger, inbox_age).await?;
        if pruned > 0 {
            tracing::debug!(projection = model.name(), pruned, "the inbox was pruned");
        }
        if session.paused(&model.ledger).await?.is_some() {
            self.session = Some(session);
            return Ok(());
        }
        if let Some(checkpoint) = position.filter(|_| owned) {
            if checkpoint > limits.decided {
                // A rebuild may have got there meanwhile, while this instance stood still.
                let decided = self.limits().await?.decided;
                if checkpoint > decided {
                    return Err(Trouble::StoreWentBack { checkpoint, decided });
                }
            }
            let instances = session.instances(&model.ledger).await?;
            let dead = self.look_at_queues(state, &instances).await?;
            while self.look(&mut session, state, checkpoint, limits.published).await? {}
            self.bury(state, &dead).await?;
        } else {
            state.leave();
        }
        self.session = Some(session);
        Ok(())
    }

    /// Compares what is new, and what was behind before; heals what is lost. Says whether that made a
    /// difference.
    async fn look(
        &mut self,
        session: &mut Session,
        state: &mut State,
        checkpoint: Position,
        until: Position,
    ) -> Result<bool, Trouble> {
        let model = Arc::clone(&state.model);
        let seen = state.seen.unwrap_or(checkpoint);
        let mut behind: HashMap<StreamId, Behind> = HashMap::new();
        for (after, end) in state.windows(seen, until) {
            let found = self.behind(session, &model, after, end).await?;
            state.looked_at(after, end, found.is_empty());
            for found in found {
                let known = behind.entry(found.head.stream_id.clone());
                let known = known.or_insert_with(|| found.clone());
                known.head.version = known.head.version.max(found.head.version);
            }
        }
        state.seen = Some(seen.max(until));
        let clean = state.open.keys().next().copied().or(state.seen).unwrap_or(checkpoint);
        if clean > checkpoint {
            session.move_checkpoint(&model.ledger, clean).await?;
        }
        self.context.metrics.checkpoint(model.name(), clean.max(checkpoint).get());
        let due = state.note(&behind, self.context.settings.sweep_grace);
        self.report(state, &behind).await?;
        if due.is_empty() { Ok(false) } else { self.heal(session, &model, &due).await }
    }

    /// Looks at what waits in the queues; gives those that are dead, by number.
    async fn look_at_queues(
        &mut self,
        state: &mut State,
        instances: &[Instance],
    ) -> Result<Vec<usize>, Trouble> {
        let connection = match self.connection.take() {
            Some(connection) if connection.is_connected() => connection,
            _ => Connection::connect(&self.context.broker).await?,
        };
        let topology = self.topology(&state.model);
        let ready = topology.ready_in_each(&connection).await?;
        if ready.iter().all(|messages| *messages == 0) {
            state.drained = Some(Instant::now());
        }
        self.connection = Some(connection);
        Ok(state.unserved.dead(&ready, instances, Instant::now()))
    }

    fn topology(&self, model: &ReadModel) -> Topology {
        let settings = &self.context.settings;
        let (projection, exchange) = (&model.projection, &settings.exchange);
        Topology::of(projection, &settings.queue_prefix, exchange, projection.partitions)
    }

    /// Deletes dead queues. Those who consume them make them anew, and apply from the event store what
    /// was in them.
    async fn bury(&mut self, state: &mut State, dead: &[usize]) -> Result<(), Trouble> {
        let topology = self.topology(&state.model);
        for number in dead {
            let Some(connection) = &self.connection else { return Ok(()) };
            let queue = &topology.queues[*number].name;
            tracing::warn!(
                projection = state.model.name(),
                queue,
                "RabbitMQ delivers what is in this queue to no instance, though all of them consume \
                 it; it is deleted and made anew, and its events are read from the event store"
            );
            connection.delete_queue(queue).await?;
            state.unserved.forget(*number);
        }
        Ok(())
    }

    /// The streams with events in the window that are not applied.
    async fn behind(
        &mut self,
        session: &mut Session,
        model: &ReadModel,
        after: Position,
        until: Position,
    ) -> Result<Vec<Behind>, Trouble> {
        let store = self.history.session().await?;
        let found = store.stream_heads(after, until, &model.projection.categories).await?;
        let mut behind = Vec::new();
        for page in found.chunks(1_000) {
            let streams: Vec<&StreamId> = page.iter().map(|head| &head.stream_id).collect();
            let applied = session.heads(&model.ledger, &streams).await?;
            for head in page {
                let known = applied.get(&head.stream_id).copied().unwrap_or_default();
                let version = known.last.map_or(0, |last| last.version.get());
                // A parked stream waits for a person, who has its events read again.
                if version < head.version.get() && !known.is_parked {
                    behind.push(Behind { head: head.clone(), applied: version });
                }
            }
        }
        Ok(behind)
    }

    /// Applies what is missing, some of it; says whether that made a difference.
    async fn heal(
        &mut self,
        session: &mut Session,
        model: &ReadModel,
        due: &[Wanted],
    ) -> Result<bool, Trouble> {
        let mut healed = 0;
        for wanted in due.chunks(History::STREAMS_AT_ONCE) {
            let events = self.history.read(wanted).await?;
            healed += self.context.heal(session, model, &events, Healing::Sweep).await?;
        }
        if healed > 0 {
            tracing::info!(
                projection = model.name(),
                events = healed,
                "lost events were found in the event store and applied"
            );
        }
        Ok(healed > 0)
    }

    async fn report(
        &mut self,
        state: &State,
        behind: &HashMap<StreamId, Behind>,
    ) -> Result<(), Trouble> {
        let events = behind.values().map(|it| it.head.version.get() - it.applied).sum();
        let first: Vec<(&StreamId, i64)> =
            behind.values().map(|it| (&it.head.stream_id, it.applied + 1)).collect();
        let oldest = if first.is_empty() {
            None
        } else {
            self.history.session().await?.oldest(&first).await?
        };
        let seconds = oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0));
        self.context.metrics.lag(state.model.name(), events, seconds);
        let stuck = state.behind.values().filter(|(_, since)| since.elapsed() > LAG_LIMIT).count();
        if stuck == 0 {
            state.probe.ok();
        } else {
            let limit = LAG_LIMIT.as_secs();
            state.probe.failing(&format!("{stuck} streams have made no progress for {limit} s"));
        }
        Ok(())
    }
}

impl State {
    fn new(model: Arc<ReadModel>, health: &Health, unserved: Unserved) -> Self {
        let probe = health.probe(&format!("projection {} lag", model.name()), None);
        probe.ok();
        Self {
            model,
            epoch: None,
            seen: None,
            open: BTreeMap::new(),
            behind: HashMap::new(),
            drained: None,
            unserved,
            probe,
        }
    }

    /// Lets another instance go on. What is known of streams stays true: one that has not moved when it
    /// is looked at again has not moved in between.
    fn leave(&mut self) {
        self.seen = None;
        self.open.clear();
        self.probe.ok();
    }

    fn forget(&mut self) {
        self.seen = None;
        self.open.clear();
        self.behind.clear();
        self.probe.ok();
    }

    /// What to look at: what was behind before, and what is new.
    fn windows(&self, seen: Position, until: Position) -> Vec<(Position, Position)> {
        let mut windows: Vec<_> = self.open.iter().map(|(after, end)| (*after, *end)).collect();
        let mut after = seen;
        while after < until {
            let end = Position::new(after.get() + WINDOW).map_or(until, |end| end.min(until));
            windows.push((after, end));
            after = end;
        }
        windows
    }

    fn looked_at(&mut self, after: Position, end: Position, clean: bool) {
        if clean {
            self.open.remove(&after);
            return;
        }
        // While a stream is stuck, small windows would pile up.
        let before = self.open.range(..after).next_back().map(|(after, end)| (*after, *end));
        match before {
            Some((start, middle)) if middle == after && end.get() - start.get() <= WINDOW => {
                self.open.remove(&after);
                self.open.insert(start, end);
            }
            _ => {
                self.open.insert(after, end);
            }
        }
    }

    /// Remembers since when streams are behind, and gives those that count as lost.
    fn note(&mut self, behind: &HashMap<StreamId, Behind>, grace: Duration) -> Vec<Wanted> {
        let now = Instant::now();
        let mut seen = HashMap::new();
        let mut due = Vec::new();
        for Behind { head, applied } in behind.values() {
            let known = self.behind.get(&head.stream_id);
            // A stream that moved is being delivered.
            let since = known.filter(|(before, _)| before == applied).map_or(now, |known| known.1);
            let waited = now - since;
            let drained = self.drained.is_some_and(|drained| drained >= since);
            if waited >= grace
                && (drained || waited >= grace * GRACES_IN_QUEUE)
                && let Ok(from) = StreamVersion::new(applied + 1)
            {
                due.push(Wanted { stream_id: head.stream_id.clone(), from, to: head.version });
            }
            seen.insert(head.stream_id.clone(), (*applied, since));
        }
        self.behind = seen;
        due
    }
}
