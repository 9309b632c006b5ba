//! Finding what was lost on the way.
//!
//! A gap shows when a later event of its stream arrives; a lost *last* event never does. So every
//! few seconds the heads of streams in the event store are compared with the bookkeeping, from a
//! checkpoint up to what the relay has published. Only the sweeper, and the replay before the first
//! delivery, move the checkpoint: up to it, every event is known to be applied.

mod remake;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Connection;
use chrono::Utc;
use daemon::{Failure, Health, chain};
use domain_events::{Position, StreamId};
use event_store::Wanted;
use tokio::time::sleep;

use self::state::{Behind, State};
use crate::Settings;
use crate::apply::ReadModel;
use crate::context::Context;
use crate::history::History;
use crate::metrics::Healing;
use crate::mysql::{Instance, Session};
use crate::topology::Topology;
use crate::trouble::Trouble;
use crate::unserved::Unserved;

/// How long to wait for open appends before the sweep is put off.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
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
    let unserved = Unserved::new(grace);
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
                        self.disconnect();
                        result = Err(trouble);
                    }
                }
            }
            Err(trouble) => {
                // While an append stays open nobody is swept, and a replay must not wait for that.
                states.iter_mut().for_each(State::leave);
                self.session = None;
                if !matches!(trouble, Trouble::Fence(_)) {
                    self.history.forget();
                }
                result = Err(trouble);
            }
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
            state.forget_queues();
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
            // What is lost can be applied without the broker.
            let queues = self.look_at_queues(state, &instances).await;
            match &queues {
                Ok(dead) => self.remake(&mut session, state, dead).await?,
                Err(_) => state.forget_queues(),
            }
            let mut healed = false;
            while self.look(&mut session, state, checkpoint, limits.published).await? {
                healed = true;
            }
            queues?;
            // A binding that is gone shows like this alone.
            if healed && let Some(connection) = self.connection.take() {
                match self.topology(&model).bind(&connection).await {
                    Ok(()) => self.connection = Some(connection),
                    // Perhaps it may not.
                    Err(error) => {
                        tracing::debug!(error = chain(&error), "the queues were not bound");
                    }
                }
            }
        } else {
            state.leave();
            state.forget_queues();
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

    /// Looks at what waits in the queues, and whether somebody is served from them; gives those that are
    /// dead, by number.
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
        self.connection = Some(connection);
        let dead = state.unserved.dead(&ready, instances, Instant::now());
        // What is in a dead queue does not come either.
        let mut waiting = ready.iter().enumerate().filter(|(_, messages)| **messages > 0);
        if waiting.all(|(number, _)| dead.contains(&number)) {
            state.drained = Some(Instant::now());
        }
        Ok(dead)
    }

    fn topology(&self, model: &ReadModel) -> Topology {
        let settings = &self.context.settings;
        let (projection, exchange) = (&model.projection, &settings.exchange);
        Topology::of(projection, &settings.queue_prefix, exchange, projection.partitions)
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
