//! Finding what was lost on the way.
//!
//! A gap shows when a later event of its stream arrives; a lost *last* event never does. So every
//! few seconds the heads of streams in the event store are compared with the bookkeeping, from a
//! checkpoint up to what the relay has published. Only the sweeper, and the replay before the first
//! delivery, move the checkpoint: up to it, every event is known to be applied.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Connection;
use chrono::Utc;
use daemon::{Failure, Health, Probe, chain};
use domain_events::{Position, StreamId, StreamVersion};
use event_store::{StreamHead, Wanted};
use tokio::time::sleep;

use crate::apply::{ApplyError, ReadModel};
use crate::context::Context;
use crate::history::History;
use crate::inbox::queue;
use crate::metrics::Healing;
use crate::mysql::Session;
use crate::trouble::Trouble;

/// Positions compared at once.
const WINDOW: i64 = 20_000;
/// How long to wait for open appends before the sweep is put off.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
/// While the queue is not empty, a missing event may still be in it; but not for ever.
const GRACES_IN_QUEUE: u32 = 12;
/// A lag of this age without progress is not healthy.
const LAG_LIMIT: Duration = Duration::from_mins(1);

/// Sweeps all projections of this instance until shutdown.
pub(crate) async fn sweep(
    context: Arc<Context>,
    models: Vec<Arc<ReadModel>>,
    health: Health,
) -> Result<(), Failure> {
    let states = models
        .into_iter()
        .map(|model| {
            let probe = health.probe(&format!("projection {} lag", model.name()), None);
            probe.ok();
            State { model, behind: HashMap::new(), drained: None, owned: false, probe }
        })
        .collect();
    let mut sweeper = Sweeper {
        history: History::new(context.store.clone()),
        session: None,
        connection: None,
        context: &context,
        states,
    };
    let interval = context.settings.sweep_interval;
    while context.shutdown.run_until_cancelled(sleep(interval)).await.is_some() {
        match context.shutdown.run_until_cancelled(sweeper.round()).await {
            None => break,
            Some(Ok(())) => {}
            Some(Err(trouble)) => {
                // The projections themselves report a lost server.
                tracing::debug!(error = chain(&trouble), "a sweep was put off");
                sweeper.disconnect();
            }
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

struct State {
    model: Arc<ReadModel>,
    /// Streams that are behind: where they stood, and since when.
    behind: HashMap<StreamId, (i64, Instant)>,
    /// When the queue was last seen empty.
    drained: Option<Instant>,
    /// Whether this instance sweeps the projection; another may.
    owned: bool,
    probe: Probe,
}

impl Sweeper<'_> {
    fn disconnect(&mut self) {
        self.history.forget();
        self.session = None;
        self.connection = None;
        for state in &mut self.states {
            state.owned = false;
        }
    }

    async fn round(&mut self) -> Result<(), Trouble> {
        let Some(until) = self.limit().await? else { return Ok(()) };
        let mut states = std::mem::take(&mut self.states);
        let mut result = Ok(());
        for state in &mut states {
            result = self.sweep(state, until).await;
            if result.is_err() {
                break;
            }
        }
        self.states = states;
        result
    }

    /// Up to where every event is decided, and published as far as the relay is concerned.
    async fn limit(&mut self) -> Result<Option<Position>, Trouble> {
        let Some(decided) = self.history.decided(FENCE_PATIENCE).await? else { return Ok(None) };
        let pending = self.history.session().await?.lowest_pending_position().await?;
        let published = pending.and_then(|position| Position::new(position.get() - 1).ok());
        Ok(Some(published.map_or(decided, |published| published.min(decided))))
    }

    async fn sweep(&mut self, state: &mut State, until: Position) -> Result<(), Trouble> {
        let model = Arc::clone(&state.model);
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.context.mysql).await?,
        };
        if !state.owned {
            state.owned = session.try_own(model.name()).await?;
        }
        // Before its first replay, a projection has no checkpoint.
        let checkpoint = session.checkpoint(&model.ledger).await?.filter(|_| state.owned);
        let Some(mut after) = checkpoint else {
            self.session = Some(session);
            return Ok(());
        };
        self.look_at_queue(state).await?;
        while after < until {
            let window = Position::new((after.get() + WINDOW).min(until.get())).unwrap_or(until);
            let behind = self.behind(&mut session, &model, after, window).await?;
            let due = state.note(&behind, self.context.settings.sweep_grace);
            self.report(state, &behind);
            if behind.is_empty() {
                session.move_checkpoint(&model.ledger, window).await?;
                self.context.metrics.checkpoint(model.name(), window.get());
                after = window;
            } else if due.is_empty() || !self.heal(&mut session, &model, &due).await? {
                break;
            }
        }
        if after == until {
            self.report(state, &[]);
        }
        self.session = Some(session);
        Ok(())
    }

    async fn look_at_queue(&mut self, state: &mut State) -> Result<(), Trouble> {
        let connection = match self.connection.take() {
            Some(connection) if connection.is_connected() => connection,
            _ => Connection::connect(&self.context.broker).await?,
        };
        let settings = &self.context.settings;
        let queue = queue(&state.model.projection, &settings.queue_prefix, &settings.exchange);
        let ready = connection.ready_messages(&queue.name).await?;
        if ready.unwrap_or(0) == 0 {
            state.drained = Some(Instant::now());
        }
        self.connection = Some(connection);
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
                let version = applied.get(&head.stream_id).map_or(0, |head| head.version.get());
                if version < head.version.get() {
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
        let mut healed = false;
        for wanted in due.chunks(History::STREAMS_AT_ONCE) {
            let events = self.history.read(wanted).await?;
            for stream in events.chunk_by(|a, b| a.stream_id == b.stream_id) {
                match self.context.heal(session, model, stream, Healing::Sweep).await {
                    Ok(()) => healed = true,
                    Err(ApplyError::Event(fault)) => {
                        tracing::debug!(error = chain(&fault), "a stream cannot be healed");
                    }
                    Err(ApplyError::Server(error)) => return Err(error.into()),
                }
            }
        }
        if healed {
            tracing::info!(
                projection = model.name(),
                streams = due.len(),
                "lost events were found in the event store and applied"
            );
        }
        Ok(healed)
    }

    fn report(&self, state: &State, behind: &[Behind]) {
        let events = behind.iter().map(|behind| behind.head.version.get() - behind.applied).sum();
        let oldest = behind.iter().map(|behind| behind.head.recorded_at).min();
        let seconds = oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0));
        self.context.metrics.lag(state.model.name(), events, seconds);
        let stuck = state.behind.values().filter(|(_, since)| since.elapsed() > LAG_LIMIT).count();
        if stuck == 0 {
            state.probe.ok();
        } else {
            let limit = LAG_LIMIT.as_secs();
            state.probe.failing(&format!("{stuck} streams have made no progress for {limit} s"));
        }
    }
}

/// A stream whose bookkeeping is behind the event store.
struct Behind {
    head: StreamHead,
    applied: i64,
}

impl State {
    /// Remembers since when streams are behind, and gives those that count as lost.
    fn note(&mut self, behind: &[Behind], grace: Duration) -> Vec<Wanted> {
        let now = Instant::now();
        let mut seen = HashMap::new();
        let mut due = Vec::new();
        for Behind { head, applied } in behind {
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
