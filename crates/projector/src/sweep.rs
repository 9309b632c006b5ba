//! Finding what was lost on the way.
//!
//! A gap shows when a later event of its stream arrives; a lost *last* event never does. So every
//! few seconds the heads of streams in the event store are compared with the bookkeeping, from a
//! checkpoint up to what the relay has published. Only the sweeper, and the replay before the first
//! delivery, move the checkpoint: up to it, every event is known to be applied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{Connection, Dialer};
use chrono::Utc;
use daemon::{Failure, Health, Probe, chain};
use domain_events::{Position, StreamId, StreamVersion};
use event_store::{StreamHead, Wanted};
use tokio::time::sleep;
use uuid::Uuid;

use crate::apply::ReadModel;
use crate::context::Context;
use crate::history::History;
use crate::metrics::Healing;
use crate::mysql::{Instance, Session};
use crate::topology::Topology;
use crate::trouble::Trouble;

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
    let states = models.into_iter().map(|model| State::new(model, &health)).collect();
    let mut sweeper = Sweeper {
        history: History::new(context.store.clone()),
        session: None,
        dialer: Dialer::new(context.broker.clone()),
        connection: None,
        context: &context,
        states,
    };
    let interval = context.settings.sweep_interval;
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
    dialer: Dialer,
    connection: Option<Connection>,
    states: Vec<State>,
}

/// What is known of one projection.
struct State {
    model: Arc<ReadModel>,
    /// Whether this instance sweeps it; another may.
    owned: bool,
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
        for state in &mut self.states {
            state.disown();
        }
    }

    /// Looks at every projection; trouble with one does not keep it from the others.
    async fn round(&mut self) -> Result<(), Trouble> {
        let mut states = std::mem::take(&mut self.states);
        let mut result = Ok(());
        let mut lost = false;
        match self.limits().await {
            Ok(limits) => {
                for state in &mut states {
                    if let Err(trouble) = self.sweep(state, limits).await {
                        self.history.forget();
                        self.session = None;
                        self.connection = None;
                        lost = true;
                        result = Err(trouble);
                    }
                }
            }
            Err(trouble) => result = Err(trouble),
        }
        if lost {
            // Ownership ended with a session.
            states.iter_mut().for_each(State::disown);
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
        if position.is_none() && state.owned {
            session.disown(model.name()).await?;
        }
        if position.is_some() && !state.owned {
            state.owned = session.try_own(model.name()).await?;
        }
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
        if let Some(checkpoint) = position.filter(|_| state.owned) {
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
            self.bury(&model, &dead).await?;
        } else {
            state.disown();
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

    /// Looks at what waits in the queues; gives those that are dead.
    async fn look_at_queues(
        &mut self,
        state: &mut State,
        instances: &[Instance],
    ) -> Result<Vec<String>, Trouble> {
        let connection = match self.connection.take() {
            Some(connection) if connection.is_connected() => connection,
            _ => self.dialer.connect().await?,
        };
        let topology = self.topology(&state.model);
        let ready = topology.ready_in_each(&connection).await?;
        if ready.iter().all(|messages| *messages == 0) {
            state.drained = Some(Instant::now());
        }
        self.connection = Some(connection);
        let limit = self.context.settings.sweep_grace * GRACES_IN_QUEUE;
        let dead = state.unserved.dead(&ready, instances, limit, Instant::now());
        Ok(dead.into_iter().map(|number| topology.queues[number].name.clone()).collect())
    }

    fn topology(&self, model: &ReadModel) -> Topology {
        let settings = &self.context.settings;
        let (projection, exchange) = (&model.projection, &settings.exchange);
        Topology::of(projection, &settings.queue_prefix, exchange, projection.partitions)
    }

    /// Deletes dead queues. Those who consume them make them anew, and apply from the event store what
    /// was in them.
    async fn bury(&mut self, model: &ReadModel, dead: &[String]) -> Result<(), Trouble> {
        for queue in dead {
            let Some(connection) = &self.connection else { return Ok(()) };
            tracing::warn!(
                projection = model.name(),
                queue,
                "RabbitMQ delivers what is in this queue to no instance, though all of them consume \
                 it; it is deleted and made anew, and its events are read from the event store"
            );
            connection.delete_queue(queue).await?;
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
    fn new(model: Arc<ReadModel>, health: &Health) -> Self {
        let probe = health.probe(&format!("projection {} lag", model.name()), None);
        probe.ok();
        Self {
            model,
            owned: false,
            epoch: None,
            seen: None,
            open: BTreeMap::new(),
            behind: HashMap::new(),
            drained: None,
            unserved: Unserved::default(),
            probe,
        }
    }

    /// Forgets everything: another instance may go on.
    fn disown(&mut self) {
        self.owned = false;
        self.forget();
    }

    fn forget(&mut self) {
        self.seen = None;
        self.open.clear();
        self.behind.clear();
        self.unserved = Unserved::default();
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

/// Queues with messages that nobody is delivered, and since when.
///
/// After a crash, RabbitMQ 4.3 can take a consumer of before the crash for the single active one, for
/// ever; quorum queues have been stuck like this for other reasons too (rabbitmq-server issues 1825 and
/// 17317). Then a queue only grows.
#[derive(Debug, Default)]
struct Unserved(HashMap<usize, Instant>);

impl Unserved {
    /// Notes how many messages each queue has, and which queues the instances are served from; gives the
    /// queues that have served nobody for too long.
    fn dead(
        &mut self,
        ready: &[u32],
        instances: &[Instance],
        limit: Duration,
        now: Instant,
    ) -> Vec<usize> {
        let is_served = |number: usize| {
            let held = |instance: &Instance| {
                instance.partitions.iter().any(|held| usize::from(*held) == number + 1)
            };
            instances.is_empty() || instances.iter().any(held)
        };
        let mut dead = Vec::new();
        for (number, messages) in ready.iter().enumerate() {
            if *messages == 0 || is_served(number) {
                self.0.remove(&number);
            } else if now - *self.0.entry(number).or_insert(now) >= limit {
                self.0.remove(&number);
                dead.push(number);
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(partitions: &[u16]) -> Instance {
        let (id, host) = (Uuid::nil(), String::new());
        Instance { id, host, of: 2, partitions: partitions.to_vec() }
    }

    #[test]
    fn a_queue_is_dead_when_it_serves_nobody_for_too_long() {
        let (limit, begun) = (Duration::from_secs(10), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut unserved = Unserved::default();
        let none = [instance(&[]), instance(&[])];
        assert!(unserved.dead(&[5, 0], &none, limit, begun).is_empty());
        assert!(unserved.dead(&[6, 0], &none, limit, after(9)).is_empty());
        assert_eq!(unserved.dead(&[7, 0], &none, limit, after(10)), [0]);
        assert!(unserved.dead(&[7, 0], &none, limit, after(11)).is_empty());
    }

    #[test]
    fn a_delivery_an_empty_queue_or_nobody_there_begin_anew() {
        let (limit, begun) = (Duration::from_secs(10), Instant::now());
        let none = [instance(&[])];
        for (ready, instances) in [(5, vec![instance(&[1])]), (0, none.to_vec()), (5, Vec::new())] {
            let mut unserved = Unserved::default();
            assert!(unserved.dead(&[5], &none, limit, begun).is_empty());
            let middle = begun + limit / 2;
            assert!(unserved.dead(&[ready], &instances, limit, middle).is_empty());
            assert!(unserved.dead(&[5], &none, limit, begun + limit).is_empty());
        }
    }
}
