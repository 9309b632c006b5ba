//! Finding events that were lost on the way.
//!
//! A gap shows when a later event of its stream arrives; a lost *last* event never does. So every
//! few seconds the sweeper compares the heads of streams in the event store with the bookkeeping, from a
//! checkpoint up to the last published event. Only the sweeper, and the replay before the first
//! delivery, move the checkpoint: up to it, every event is known to be applied.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Connection;
use daemon::{Failure, Health, chain};
use domain_events::{Position, StreamId, StreamRange};
use read_model::{Instance, Lock, ReadModel, Session};
use tokio::time::sleep;

use super::state::State;
use super::stuck_queues::delete_stuck;
use super::unserved::Unserved;
use crate::Settings;
use crate::context::Context;
use crate::error::Error;
use crate::history::{Behind, Decided, History, Lag, behind, published};
use crate::metrics::Healing;
use crate::topology::Topology;

/// How long to wait for open appends before the sweep is postponed.
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

    /// Sweeps every projection; an error with one does not keep it from the others.
    async fn round(&mut self) -> Result<(), Error> {
        let mut states = std::mem::take(&mut self.states);
        let mut result = Ok(());
        match self.limits().await {
            Ok(limits) => {
                for state in &mut states {
                    if let Err(error) = self.sweep(state, limits).await {
                        // With the session goes what it owned.
                        state.leave();
                        self.disconnect();
                        result = Err(error);
                    }
                }
            }
            Err(error) => {
                // While an append stays open nothing is swept, and a replay must not wait for that.
                states.iter_mut().for_each(State::leave);
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
        let decided = match self.history.decided(FENCE_PATIENCE).await? {
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
        let checkpoint = own_checkpoint(&mut session, state).await?;
        if session.paused(&model.ledger).await?.is_some() {
            state.forget_queues();
        } else if let Some(checkpoint) = checkpoint {
            self.require_not_restored(checkpoint, limits).await?;
            let instances = session.instances(&model.ledger).await?;
            let queues = self.check_queues(state, &instances).await;
            // Lost events can be applied without the broker.
            if self.heal_all(&mut session, state, checkpoint, limits.published).await? {
                self.bind_again(&model).await;
            }
            queues?;
        } else {
            state.leave();
            state.forget_queues();
        }
        self.session = Some(session);
        Ok(())
    }

    /// Makes sure that the event store has not gone back behind the checkpoint.
    async fn require_not_restored(
        &mut self,
        checkpoint: Position,
        limits: Limits,
    ) -> Result<(), Error> {
        if checkpoint <= limits.decided {
            return Ok(());
        }
        // A rebuild may have moved it meanwhile, while this instance stood still.
        let decided = self.limits().await?.decided;
        if checkpoint <= decided {
            return Ok(());
        }
        Err(Error::StoreWentBack { checkpoint, decided })
    }

    /// Deletes stuck queues, and finds out whether messages are still to come.
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
        // Messages of a stuck queue do not come either.
        let mut waiting = ready.iter().enumerate().filter(|(_, messages)| **messages > 0);
        if waiting.all(|(number, _)| stuck.contains(&number)) {
            state.drained = Some(Instant::now());
        }
        let topology = self.topology(&state.model);
        delete_stuck(&mut self.connection, &topology, state, &stuck).await;
        Ok(())
    }

    /// How many messages wait in each queue.
    async fn ready_messages(&mut self, model: &ReadModel) -> Result<Vec<u32>, Error> {
        let connection = match self.connection.take() {
            Some(connection) if connection.is_connected() => connection,
            _ => Connection::connect(&self.context.broker).await?,
        };
        let ready = self.topology(model).ready_in_each(&connection).await?;
        self.connection = Some(connection);
        Ok(ready)
    }

    /// Heals until nothing is left that counts as lost. Says whether anything was.
    async fn heal_all(
        &mut self,
        session: &mut Session,
        state: &mut State,
        checkpoint: Position,
        until: Position,
    ) -> Result<bool, Error> {
        let mut healed = false;
        while self.compare(session, state, checkpoint, until).await? {
            healed = true;
        }
        Ok(healed)
    }

    /// Binds the queues again: nothing but lost events shows that a binding is gone.
    async fn bind_again(&mut self, model: &ReadModel) {
        let Some(connection) = self.connection.take() else { return };
        match self.topology(model).bind(&connection).await {
            Ok(()) => self.connection = Some(connection),
            // The login may lack the right to do so.
            Err(error) => tracing::debug!(error = chain(&error), "the queues were not bound"),
        }
    }

    /// Compares new positions, and those with streams that lagged before. Heals lost events; says whether
    /// that made a difference.
    async fn compare(
        &mut self,
        session: &mut Session,
        state: &mut State,
        checkpoint: Position,
        until: Position,
    ) -> Result<bool, Error> {
        let model = Arc::clone(&state.model);
        let seen = state.seen.unwrap_or(checkpoint);
        let mut lagging: HashMap<StreamId, Behind> = HashMap::new();
        for window in state.windows(seen, until) {
            let store = self.history.session().await?;
            let mut found = behind(session, store, &model, window).await?;
            // A parked stream waits for a person, whose command reads its events again.
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
            session.move_checkpoint(&model.ledger, clean).await?;
        }
        self.context.metrics.checkpoint(model.name(), clean.max(checkpoint).get());
        let due = state.note(&lagging, self.context.settings.sweep_grace);
        self.report(state, &lagging).await?;
        if due.is_empty() { Ok(false) } else { self.heal(session, &model, &due).await }
    }

    fn topology(&self, model: &ReadModel) -> Topology {
        let settings = &self.context.settings;
        let (projection, exchange) = (&model.projection, &settings.exchange);
        Topology::of(projection, &settings.queue_prefix, exchange, projection.partitions)
    }

    /// Applies what is missing, some of it; says whether that made a difference.
    async fn heal(
        &mut self,
        session: &mut Session,
        model: &ReadModel,
        due: &[StreamRange],
    ) -> Result<bool, Error> {
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
    ) -> Result<(), Error> {
        let lag = if behind.is_empty() {
            Lag::default()
        } else {
            Lag::of(self.history.session().await?, behind.values()).await?
        };
        let Lag { events, seconds } = lag;
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

/// The checkpoint, if this instance may move it: it owns it, and no replay is under way.
async fn own_checkpoint(
    session: &mut Session,
    state: &mut State,
) -> Result<Option<Position>, Error> {
    let model = Arc::clone(&state.model);
    let checkpoint = session.checkpoint(&model.ledger).await?;
    // Other tables lack other events.
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
