//! One projection, over whatever happens to the servers.

use std::sync::Arc;
use std::time::Duration;

use broker::{Connection, Dialer, Queue};
use daemon::backoff::Backoff;
use daemon::{Failure, Health, Probe, chain};
use domain_events::Position;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::apply::{ApplyError, ReadModel};
use crate::context::Context;
use crate::history::{History, of_streams};
use crate::inbox::queue;
use crate::live::Live;
use crate::metrics::Healing;
use crate::mysql::{Checkpoint, Session};
use crate::trouble::Trouble;

/// How long to wait for a writer before saying so.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// How often to ask whether another instance is done.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// Keeps one read model up to date until shutdown.
pub(crate) async fn supervise(
    context: Arc<Context>,
    model: Arc<ReadModel>,
    health: Health,
) -> Result<(), Failure> {
    let component = format!("projection {}", model.name());
    let settings = &context.settings;
    let supervisor = Supervisor {
        queue: queue(&model.projection, &settings.queue_prefix, &settings.exchange),
        probe: health.probe(&component, None),
        streams: health.probe(&component, None),
        dialer: Mutex::new(Dialer::new(context.broker.clone())),
        context: &context,
        model: &model,
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), settings.retry_max);
    let mut worked = false;
    loop {
        let Err(trouble) = supervisor.cycle(&mut worked, &mut backoff).await else {
            return Ok(());
        };
        if trouble.is_configuration() && !worked {
            return Err(trouble.into());
        }
        if let Some(server) = trouble.server() {
            context.metrics.lost(server);
        }
        supervisor.probe.failing(&chain(&trouble));
        let pause = sleep(backoff.failed());
        if context.shutdown.run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

struct Supervisor<'c> {
    context: &'c Context,
    model: &'c ReadModel,
    dialer: Mutex<Dialer>,
    queue: Queue,
    probe: Probe,
    streams: Probe,
}

impl Supervisor<'_> {
    /// From connecting to the end of one connection; `Ok` at shutdown.
    async fn cycle(&self, worked: &mut bool, backoff: &mut Backoff) -> Result<(), Trouble> {
        let (context, model) = (self.context, self.model);
        // MySQL first: while it is away, nothing is taken from the queue.
        let mut session = Session::connect(&context.mysql).await?;
        session.require_tables(&model.projection, &model.ledger).await?;
        let connection = self.connect().await?;
        connection.declare_exchange(&context.settings.exchange).await?;
        let new_queue = connection.declare_queue(&self.queue).await?;
        // So that a login that is refused is told before the first gap.
        History::new(context.store.clone()).session().await?;
        let replay = self.replay(&mut session, new_queue);
        match context.shutdown.run_until_cancelled(replay).await {
            None => return Ok(()),
            Some(replayed) => replayed?,
        }
        let live =
            Live::open(context, model, session, &connection, &self.queue, &self.streams).await?;
        tracing::info!(projection = model.name(), queue = self.queue.name, "following the queue");
        self.probe.ok();
        *worked = true;
        let (result, productive) = live.follow().await;
        if productive {
            backoff.succeeded();
        }
        connection.close().await;
        result
    }

    async fn connect(&self) -> Result<Connection, broker::Error> {
        self.dialer.lock().await.connect().await
    }

    /// Applies the event store's history, if the queue is new or that was never finished. What was
    /// published before the queue was there, only the event store has.
    async fn replay(&self, session: &mut Session, new_queue: bool) -> Result<(), Trouble> {
        let ledger = &self.model.ledger;
        let mut history = History::new(self.context.store.clone());
        if new_queue || session.checkpoint(ledger).await?.is_none() {
            let until = self.decided(&mut history).await?;
            session.begin_replay(ledger, until).await?;
        }
        loop {
            let checkpoint = session.checkpoint(ledger).await?;
            let Some(Checkpoint { position, replay_until: Some(until) }) = checkpoint else {
                return Ok(());
            };
            // Only one instance replays, and nobody sweeps meanwhile.
            if !session.try_own(self.model.name()).await? {
                self.probe.not_ready("another instance applies the history");
                sleep(OWN_PAUSE).await;
                continue;
            }
            let replayed = self.replay_part(session, &mut history, position, until).await;
            session.disown(self.model.name()).await?;
            replayed?;
        }
    }

    async fn decided(&self, history: &mut History) -> Result<Position, Trouble> {
        loop {
            match history.decided(FENCE_PATIENCE).await? {
                Ok(position) => return Ok(position),
                Err(writers) => self.probe.not_ready(&writers.to_string()),
            }
        }
    }

    /// Applies history page by page. A page with an event that cannot be applied keeps the checkpoint
    /// before it, and the rest of the history is applied all the same: the sweeper tries again.
    async fn replay_part(
        &self,
        session: &mut Session,
        history: &mut History,
        from: Position,
        until: Position,
    ) -> Result<(), Trouble> {
        let (context, model) = (self.context, self.model);
        let page = u32::try_from(context.settings.batch_size).unwrap_or(u32::MAX);
        let (mut after, mut clean) = (from, true);
        while after < until {
            let categories = &model.projection.categories;
            let store = history.session().await?;
            store.require_migrated().await?;
            let (events, end) = store.read_events(after, until, categories, page).await?;
            match context.heal(session, model, &of_streams(events), Healing::Replay).await {
                Ok(_healed) => {}
                Err(ApplyError::Event(fault)) => {
                    if clean {
                        let error = chain(&fault);
                        tracing::error!(
                            projection = model.name(),
                            error,
                            "a stream waits; the others go on"
                        );
                    }
                    clean = false;
                }
                Err(error @ ApplyError::Server(_)) => return Err(error.into()),
            }
            after = end;
            if clean {
                session.move_checkpoint(&model.ledger, after).await?;
                context.metrics.checkpoint(model.name(), after.get());
            }
            let done = after.get() - from.get();
            self.probe.not_ready(&format!(
                "applying the history: {done} of {} positions",
                until.get() - from.get()
            ));
        }
        session.end_replay(&model.ledger, until).await?;
        tracing::info!(
            projection = model.name(),
            from = from.get(),
            until = until.get(),
            "the event store's history is applied"
        );
        Ok(())
    }
}
