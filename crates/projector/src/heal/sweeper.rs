//! The sweeper finds events that were lost on the way, and applies them from the event store.
//!
//! When an event is lost, the next event of its stream reveals the gap. A lost *last* event has no such
//! successor. So every few seconds the sweeper compares the last version of each stream in the event store with
//! the bookkeeping, from the checkpoint to the last published event. Only the sweeper and the replay before the
//! first delivery move the checkpoint: every event up to it is known to be applied or parked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Connection;
use daemon::output::counted;
use daemon::{Failure, Health, chain};
use domain_events::{Position, StreamId, StreamRange};
use read_model::{Files, Instance, Lock, ReadModel, Session};
use tokio::time::sleep;

use super::silent::brought;
use super::state::State;
use super::unserved::Unserved;
use crate::Settings;
use crate::context::Context;
use crate::error::Error;
use crate::history::{
    Decided, History, Lag, LaggingStream, apply_in_order, lagging_streams, published,
    require_same_history,
};
use crate::metrics::Healing;
use crate::topology::Topology;

/// How long to wait for open transactions that append events, before the sweep is postponed.
const APPEND_PATIENCE: Duration = Duration::from_secs(2);
/// `/readyz` reports streams that have lagged without progress for this long.
const LAG_LIMIT: Duration = Duration::from_mins(1);
/// The most positions of unpublished events that the metric of the lag counts.
const UNPUBLISHED_MAX: i64 = 100_000;
/// With a longer interval, each sweep connects again: MySQL ends sessions that are idle for a minute.
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
            Some(Err(error)) => probe.failing(&chain(&error)),
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

/// The ends of the event store.
#[derive(Clone, Copy)]
struct Limits {
    /// The order of all events up to here is decided: no open transaction can add one.
    decided: Position,
    /// The relay has published all events up to here.
    published: Position,
}

impl Sweeper<'_> {
    fn disconnect(&mut self) {
        self.history.forget();
        self.session = None;
        self.connection = None;
    }

    /// Sweeps every projection, also after an error with one of them. Returns the last error.
    async fn round(&mut self) -> Result<(), Error> {
        let mut states = std::mem::take(&mut self.states);
        let mut result = Ok(());
        match self.limits().await {
            Ok(limits) => {
                for state in &mut states {
                    if let Err(error) = self.sweep(state, limits).await {
                        // The end of the session releases its locks.
                        state.release();
                        self.disconnect();
                        result = Err(error);
                    }
                }
            }
            Err(error) => {
                // Releases the locks: a replay must not wait for a sweep that an open append holds up.
                states.iter_mut().for_each(State::release);
                self.session = None;
                if !matches!(error, Error::Fence(_)) {
                    self.history.forget();
                }
                result = Err(error);
            }
        }
        self.states = states;
        result
    }

    async fn limits(&mut self) -> Result<Limits, Error> {
        let decided = match self.history.decided(APPEND_PATIENCE).await? {
            Decided::UpTo(decided) => decided,
            Decided::HeldUp(writers) => return Err(writers.into()),
        };
        let published = published(self.history.session().await?, decided).await?;
        Ok(Limits { decided, published })
    }

    async fn sweep(&mut self, state: &mut State, limits: Limits) -> Result<(), Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.context.mysql).await?,
        };
        let model = Arc::clone(&state.model);
        let (parked, conflicts) = session.count_parked(&model.ledger).await?;
        self.context.metrics.parked(model.name(), parked, conflicts);
        let is_diverged = session.is_diverged(&model.ledger).await?;
        self.context.metrics.diverged(model.name(), is_diverged);
        let checkpoint = own_checkpoint(&mut session, state).await?;
        if session.paused(&model.ledger).await?.is_some() {
            state.forget_queues();
        } else if model.files() != Files::InService {
            // Another instance must sweep.
            session.disown(&model.ledger, Lock::Checkpoint).await?;
            state.release();
            state.forget_queues();
        } else if let Some(mut checkpoint) = checkpoint {
            let store = self.history.session().await?;
            if require_same_history(&mut session, store, &model).await? {
                state.forget();
                checkpoint = own_checkpoint(&mut session, state).await?.unwrap_or(checkpoint);
            }
            let instances = session.instances(&model.ledger).await?;
            let brought = brought(model.name(), &instances, &session.reports().await?);
            state.silent.update(brought.as_deref(), self.context.settings.sweep_grace);
            let queues = self.check_queues(state, &instances).await;
            // An error with the broker comes last: lost events can be applied without it.
            let healed = self.heal_all(&mut session, state, checkpoint, limits).await?;
            if healed > 0 {
                let queues = usize::from(model.projection.partitions);
                state.silent.healed(queues, brought.as_deref(), healed);
                self.bind_again(&model).await;
            }
            queues?;
        } else {
            state.release();
            state.forget_queues();
        }
        self.session = Some(session);
        Ok(())
    }

    /// Reports stuck queues, and records whether the queues may still deliver messages.
    async fn check_queues(
        &mut self,
        state: &mut State,
        instances: &[Instance],
    ) -> Result<(), Error> {
        let ready = match self.ready_messages(&state.model).await {
            Ok(ready) => ready,
            Err(error) => {
                state.forget_queues();
                return Err(error);
            }
        };
        let stuck = state.unserved.stuck(&ready, instances, Instant::now());
        // A stuck queue counts as empty: it delivers nothing.
        let mut waiting = ready.iter().enumerate().filter(|(_, messages)| **messages > 0);
        if waiting.all(|(number, _)| stuck.contains(&number)) {
            state.drained = Some(Instant::now());
        }
        let topology = self.topology(&state.model);
        let names = stuck.iter().map(|number| topology.queues[*number].name.as_str());
        let all: Vec<&str> = topology.queues.iter().map(|queue| queue.name.as_str()).collect();
        state.report_queues(&names.collect::<Vec<_>>(), &all);
        Ok(())
    }

    /// The number of messages that wait in each queue. Counts the dead letters too.
    async fn ready_messages(&mut self, model: &ReadModel) -> Result<Vec<u32>, Error> {
        let connection = match self.connection.take() {
            Some(connection) if connection.is_connected() => connection,
            _ => Connection::connect(&self.context.broker).await?,
        };
        let topology = self.topology(model);
        let ready = topology.ready_in_each(&connection).await?;
        let dead = connection.ready_messages(topology.dead_letters()).await?.unwrap_or(0);
        self.context.metrics.dead_letters(model.name(), dead);
        self.connection = Some(connection);
        Ok(ready)
    }

    /// Heals until no event counts as lost. Returns how many did.
    async fn heal_all(
        &mut self,
        session: &mut Session,
        state: &mut State,
        checkpoint: Position,
        limits: Limits,
    ) -> Result<usize, Error> {
        let mut all = 0;
        loop {
            let healed = self.compare(session, state, checkpoint, limits).await?;
            if healed == 0 {
                return Ok(all);
            }
            all += healed;
        }
    }

    /// Declares the bindings again. Lost events are the only sign of a missing binding.
    async fn bind_again(&mut self, model: &ReadModel) {
        let Some(connection) = self.connection.take() else { return };
        match self.topology(model).bind(&connection).await {
            Ok(()) => self.connection = Some(connection),
            // Not an error: the login may lack the right to bind.
            Err(error) => tracing::debug!(
                projection = model.name(),
                error = chain(&error),
                "the bindings of the queues were not declared again"
            ),
        }
    }

    /// Compares new positions, and windows with lagging streams. Heals lost events and returns their number.
    async fn compare(
        &mut self,
        session: &mut Session,
        state: &mut State,
        checkpoint: Position,
        limits: Limits,
    ) -> Result<usize, Error> {
        let until = limits.published;
        let model = Arc::clone(&state.model);
        let seen = state.seen.unwrap_or(checkpoint);
        let mut lagging: HashMap<StreamId, LaggingStream> = HashMap::new();
        let windows = state.windows(self.history.session().await?, seen, until).await?;
        for window in windows {
            let store = self.history.session().await?;
            let mut found = lagging_streams(session, store, &model, window).await?;
            // A parked stream waits for an operator; `parked retry` or `skip` reads its events.
            found.retain(|stream| !stream.is_parked);
            state.compared(window, found.is_empty());
            for found in found {
                let known = lagging.entry(found.stream_id.clone()).or_insert_with(|| found.clone());
                known.stored = known.stored.max(found.stored);
            }
        }
        state.seen = Some(seen.max(until));
        let clean = state.open.keys().next().copied().or(state.seen).unwrap_or(checkpoint);
        if clean > checkpoint {
            let found = self.history.session().await?.surroundings(None, clean).await?;
            session.move_checkpoint(&model.ledger, clean, found.last).await?;
        }
        self.context.metrics.checkpoint(model.name(), clean.max(checkpoint).get());
        let due = state.track(&lagging, self.context.settings.sweep_grace);
        self.report(session, state, lagging, limits).await?;
        if due.is_empty() { Ok(0) } else { self.heal(session, &model, (&due, until)).await }
    }

    fn topology(&self, model: &ReadModel) -> Topology {
        let settings = &self.context.settings;
        let (projection, exchange) = (&model.projection, &settings.exchange);
        Topology::of(projection, &settings.queue_prefix, exchange, projection.partitions)
    }

    /// Applies the first missing events of each stream. Returns their number.
    async fn heal(
        &mut self,
        session: &mut Session,
        model: &ReadModel,
        (due, until): (&[StreamRange], Position),
    ) -> Result<usize, Error> {
        if model.is_ordered() {
            let target = (session, model);
            let healed = apply_in_order(self.context, &mut self.history, target, until).await?;
            self.context.metrics.healed(model.name(), Healing::Sweep, healed);
            return Ok(healed);
        }
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
        Ok(healed)
    }

    /// Measures the lag, up to the end of the event store: a read model lags also while no relay runs.
    async fn report(
        &mut self,
        session: &mut Session,
        state: &State,
        mut lagging: HashMap<StreamId, LaggingStream>,
        Limits { decided, published }: Limits,
    ) -> Result<(), Error> {
        let store = self.history.session().await?;
        let end = Position::new(published.get() + UNPUBLISHED_MAX).unwrap_or(decided);
        let unpublished = (published, decided.min(end));
        for found in lagging_streams(session, store, &state.model, unpublished).await? {
            let known = lagging.entry(found.stream_id.clone()).or_insert_with(|| found.clone());
            known.stored = known.stored.max(found.stored);
        }
        let Lag { events, seconds, .. } = Lag::of(store, lagging.values()).await?;
        self.context.metrics.lag(state.model.name(), events, seconds);
        let stuck = state.lagging.values().filter(|(_, since)| since.elapsed() > LAG_LIMIT).count();
        if stuck == 0 {
            state.probe.ok();
        } else {
            let (one, many) = ("stream lags and has", "streams lag and have");
            let (stuck, limit) = (counted(stuck, one, many), LAG_LIMIT.as_secs());
            state.probe.failing(&format!("{stuck} made no progress for {limit} s"));
        }
        Ok(())
    }
}

/// Returns the checkpoint if this instance may move it: it holds the lock, and no replay runs.
async fn own_checkpoint(
    session: &mut Session,
    state: &mut State,
) -> Result<Option<Position>, Error> {
    let model = Arc::clone(&state.model);
    let checkpoint = session.checkpoint(&model.ledger).await?;
    // A new epoch means other tables, which may lack other events.
    if let Some(checkpoint) = checkpoint.filter(|it| state.epoch != Some(it.epoch)) {
        state.epoch = Some(checkpoint.epoch);
        state.forget();
    }
    let Some(checkpoint) = checkpoint.filter(|it| it.replay_until.is_none()) else {
        session.disown(&model.ledger, Lock::Checkpoint).await?;
        return Ok(None);
    };
    let own = session.try_own(&model.ledger, Lock::Checkpoint).await?;
    Ok(own.then_some(checkpoint.position))
}
