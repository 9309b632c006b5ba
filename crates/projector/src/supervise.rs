//! One projection, over whatever happens to the servers.

use std::sync::Arc;
use std::time::Duration;

use broker::{Connection, Queue};
use daemon::backoff::Backoff;
use daemon::{Failure, Health, Probe, chain};
use domain_events::{Origin, Position};
use tokio::time::sleep;

use crate::apply::ReadModel;
use crate::context::Context;
use crate::history::{History, of_streams};
use crate::inbox::queue;
use crate::live::Live;
use crate::metrics::Healing;
use crate::mysql::Session;
use crate::trouble::Trouble;

/// How long to wait for a writer before saying so.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);

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
        let checkpoint = session.checkpoint(&model.ledger).await?;
        let connection = Connection::connect(&context.broker).await?;
        connection.declare_exchange(&context.settings.exchange).await?;
        let new_queue = connection.declare_queue(&self.queue).await?;
        // What was published before the queue was there, only the event store has.
        if new_queue || checkpoint.is_none() {
            let from = checkpoint.unwrap_or(Position::START);
            let replay = self.replay(&mut session, from);
            match context.shutdown.run_until_cancelled(replay).await {
                None => return Ok(()),
                Some(replayed) => replayed?,
            }
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

    /// Applies the event store's history after a position, up to a fence taken now.
    async fn replay(&self, session: &mut Session, from: Position) -> Result<(), Trouble> {
        let (context, model) = (self.context, self.model);
        let mut history = History::new(context.store.clone());
        let store = history.session().await?;
        store.require_migrated().await?;
        let until = loop {
            if let Some(position) = history.decided(FENCE_PATIENCE).await? {
                break position;
            }
        };
        let page = u32::try_from(context.settings.batch_size).unwrap_or(u32::MAX);
        let mut after = from;
        while after < until {
            let categories = &model.projection.categories;
            let events =
                history.session().await?.read_events(after, until, categories, page).await?;
            let last = events.last().and_then(|event| match event.origin {
                Origin::Stream { position, .. } => position,
                Origin::Unversioned { .. } => None,
            });
            let full = events.len() >= context.settings.batch_size;
            after = last.filter(|_| full).unwrap_or(until);
            context.heal(session, model, &of_streams(events), Healing::Replay).await?;
            session.move_checkpoint(&model.ledger, after).await?;
            context.metrics.checkpoint(model.name(), after.get());
        }
        session.move_checkpoint(&model.ledger, until).await?;
        tracing::info!(
            projection = model.name(),
            from = from.get(),
            until = until.get(),
            "the event store's history is applied"
        );
        Ok(())
    }
}
