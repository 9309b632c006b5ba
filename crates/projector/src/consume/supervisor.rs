//! Supervises one projection: prepares it, follows its queues, and starts again after every failure of a
//! server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use broker::Connection;
use daemon::backoff::Backoff;
use daemon::{Failure, Health, Probe, chain};
use domain_events::{Position, StoredEvent};
use read_model::{Checkpoint, Files, Lock, ReadModel, Service, Session};
use tokio::time::{Instant, sleep};

use super::batches::Batches;
use super::consumer::ConnectedProjection;
use super::partitions::Partitions;
use crate::Settings;
use crate::context::{Context, component};
use crate::error::{Error, ServerError};
use crate::history::{
    Decided, FENCE_PATIENCE, History, Pace, Span, Target, replay, require_same_history,
};
use crate::topology::Topology;

/// How often to check whether another instance has finished.
const OWN_PAUSE: Duration = Duration::from_secs(1);
/// How often to check whether a paused projection was resumed.
const PAUSE_POLL: Duration = Duration::from_millis(500);
/// How often to check whether previous queues are empty.
const DRAIN_POLL: Duration = Duration::from_millis(200);
/// A connection that lasted longer resets the back-off.
const SETTLED: Duration = Duration::from_secs(5);

/// Keeps one read model up to date until shutdown.
pub(crate) async fn supervise(
    context: Arc<Context>,
    model: Arc<ReadModel>,
    batches: Arc<Batches>,
    health: Health,
) -> Result<(), Failure> {
    let component = component(&model);
    let supervisor = Supervisor {
        probe: health.probe(&component, None),
        batches: &batches,
        gaps: health.probe(&format!("{component} gaps"), None),
        context: &context,
        model: &model,
        new_queue: AtomicBool::new(false),
    };
    supervisor.gaps.ok();
    let settings = &context.settings;
    let mut backoff = Backoff::reconnect(settings.retry_max);
    let mut worked = false;
    loop {
        let Err(error) = Box::pin(supervisor.cycle(&mut worked, &mut backoff)).await else {
            return Ok(());
        };
        if error.server().is_some_and(ServerError::is_configuration) && !worked {
            return Err(error.into());
        }
        if let Some(server) = error.server() {
            context.metrics.lost(server.name());
        }
        // A batch that waited for a lock has reported who holds it.
        let lock = supervisor
            .batches
            .reason()
            .filter(|_| error.server().is_some_and(ServerError::is_lock_wait));
        supervisor.probe.failing(&lock.unwrap_or_else(|| chain(&error)));
        let pause = sleep(backoff.failed());
        if context.shutdown.run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

struct Supervisor<'c> {
    context: &'c Arc<Context>,
    model: &'c Arc<ReadModel>,
    probe: Probe,
    batches: &'c Batches,
    gaps: Probe,
    /// Whether a queue was declared that lacks the messages published before.
    new_queue: AtomicBool,
}

impl Supervisor<'_> {
    /// Connects, and follows the queues until the connection ends. `Ok` means shutdown.
    async fn cycle(&self, worked: &mut bool, backoff: &mut Backoff) -> Result<(), Error> {
        let stop = &self.context.shutdown;
        let prepare = Box::pin(self.prepare());
        let Some(prepared) = stop.run_until_cancelled(prepare).await else { return Ok(()) };
        let (connection, topology) = prepared?;
        tracing::info!(
            projection = self.model.name(),
            queues = topology.queues.len(),
            "the projection follows its queues"
        );
        *worked = true;
        let started = Instant::now();
        let partitions = self.partitions(&connection, &topology, Some(&self.probe));
        let result = partitions.follow(stop).await;
        if started.elapsed() > SETTLED {
            backoff.succeeded();
        }
        connection.close().await;
        result
    }

    /// Does everything that precedes the first delivery: checks the tables, declares the queues, applies the
    /// history.
    async fn prepare(&self) -> Result<(Connection, Topology), Error> {
        let (context, model) = (self.context, self.model);
        // MySQL first: while it is down, no message is taken from a queue.
        let mut session = Session::connect(&context.mysql).await?;
        session.require_tables(&model.projection, &model.ledger).await?;
        self.enter_service(&mut session).await?;
        self.wait_until_resumed(&mut session).await?;
        let mut history = History::new(context.store.clone());
        let store = history.session().await?;
        // Otherwise a refused login or a missing migration would be reported only at the first gap.
        store.require_complete().await?;
        require_same_history(&mut session, store, model).await?;
        // What to compare may have changed.
        model.prepare(&mut session).await?;
        let connection = Connection::connect(&context.broker).await?;
        let topology = self.topology(model.projection.partitions);
        self.wait_for_others(&mut session).await?;
        session.close().await;
        // The flag survives failures until a replay has begun.
        if topology.declare(&connection).await? {
            self.new_queue.store(true, Ordering::Relaxed);
        }
        // A new session: a slow broker may take longer to declare queues than MySQL keeps an idle session.
        let mut session = Session::connect(&context.mysql).await?;
        self.retire_previous_queues(&mut session, &connection).await?;
        self.replay(&mut session).await?;
        session.close().await;
        Ok((connection, topology))
    }

    async fn wait_until_resumed(&self, session: &mut Session) -> Result<(), Error> {
        let (metrics, name) = (&self.context.metrics, self.model.name());
        while let Some((reason, _since)) = session.paused(&self.model.ledger).await? {
            self.batches.reset();
            let diverged = session.is_diverged(&self.model.ledger).await?;
            let remedy = format!("; run `projector resume {name}` to continue");
            let remedy = if diverged { "" } else { &remedy };
            self.probe.failing(&format!("paused: {reason}{remedy}"));
            metrics.paused(name, true);
            metrics.diverged(name, diverged);
            sleep(PAUSE_POLL).await;
        }
        metrics.paused(name, false);
        metrics.diverged(name, false);
        Ok(())
    }

    /// Waits until the files of this program are in service. Puts them in service if they are new.
    async fn enter_service(&self, session: &mut Session) -> Result<(), Error> {
        let model = self.model;
        let projection = model.name().to_owned();
        loop {
            let served = session.put_in_service(&model.ledger, &model.projection, None).await?;
            model.prepare(session).await?;
            let waits_for = match served {
                Service::InService if model.files() == Files::InService => return Ok(()),
                // Another instance was faster.
                Service::InService => continue,
                Service::New => {
                    tracing::warn!(
                        projection,
                        "the files of the projection are new: from now on their handlers are applied, and \
                         instances with other files wait. Run `projector rebuild start {projection}` to \
                         apply them to earlier events too"
                    );
                    continue;
                }
                Service::Superseded => Error::OtherHandlers { projection: projection.clone() },
                Service::OtherTables => Error::OtherTables { projection: projection.clone() },
                Service::Rebuilding => Error::Undecided { projection: projection.clone() },
            };
            self.batches.reset();
            self.probe.failing(&waits_for.to_string());
            sleep(OWN_PAUSE).await;
        }
    }

    fn topology(&self, partitions: u16) -> Topology {
        let Settings { queue_prefix, exchange, .. } = &self.context.settings;
        Topology::of(&self.model.projection, queue_prefix, exchange, partitions)
    }

    fn partitions<'p>(
        &'p self,
        connection: &'p Connection,
        topology: &'p Topology,
        ready: Option<&'p Probe>,
    ) -> Partitions<'p> {
        let Self { context, model, ref gaps, batches, .. } = *self;
        Partitions {
            projection: ConnectedProjection { context, model, connection, gaps, batches },
            topology,
            ready,
        }
    }

    /// Waits until all instances with another number of partitions have stopped.
    async fn wait_for_others(&self, session: &mut Session) -> Result<(), Error> {
        let wanted = self.model.projection.partitions;
        loop {
            let instances = session.instances(&self.model.ledger).await?;
            let Some(other) = instances.iter().find(|instance| instance.of != wanted) else {
                return Ok(());
            };
            self.probe.not_ready(&format!(
                "projection.toml has partitions = {wanted}, but the instance {} runs with partitions = {}: \
                 stop all instances that do",
                other.host, other.of
            ));
            sleep(OWN_PAUSE).await;
        }
    }

    /// After a change of the number of partitions: closes the previous queues to new messages, empties and
    /// removes them.
    async fn retire_previous_queues(
        &self,
        session: &mut Session,
        connection: &Connection,
    ) -> Result<(), Error> {
        let (ledger, wanted) = (&self.model.ledger, self.model.projection.partitions);
        while let Some(old) = session.partitions(ledger).await?.filter(|old| *old != wanted) {
            // A lock of its own: the sweeper keeps its lock and goes on.
            if !session.try_own(ledger, Lock::Queues).await? {
                self.probe
                    .not_ready("waiting until another instance has emptied the previous queues");
                sleep(OWN_PAUSE).await;
                continue;
            }
            let retired = self.retire(connection, &self.topology(old)).await;
            session.disown(ledger, Lock::Queues).await?;
            retired?;
            session.set_partitions(ledger, wanted).await?;
        }
        Ok(session.set_partitions(ledger, wanted).await?)
    }

    async fn retire(&self, connection: &Connection, old: &Topology) -> Result<(), Error> {
        tracing::info!(projection = self.model.name(), "emptying the previous queues");
        old.cut_off(connection).await?;
        while old.ready_messages(connection).await? > 0 {
            let emptied = self.context.shutdown.child_token();
            let watch = async {
                while old.ready_messages(connection).await? > 0 {
                    self.probe.not_ready("emptying the previous queues");
                    sleep(DRAIN_POLL).await;
                }
                emptied.cancel();
                Ok::<_, Error>(())
            };
            let partitions = self.partitions(connection, old, None);
            // Deliveries that were not applied go back to their queue; then the loop counts them again.
            tokio::try_join!(partitions.follow(&emptied), watch)?;
            if self.context.shutdown.is_cancelled() {
                return Err(Error::Stopped);
            }
        }
        Ok(old.remove(connection).await?)
    }

    /// Applies the history from the event store if a queue is new, or if an earlier replay has not ended. A new
    /// queue lacks the events that were published before it existed.
    ///
    /// The queues are not consumed meanwhile: every delivery would show a gap, and its stream would be read
    /// from the event store once more.
    async fn replay(&self, session: &mut Session) -> Result<(), Error> {
        let ledger = &self.model.ledger;
        let mut history = History::new(self.context.store.clone());
        let new_queue = self.new_queue.load(Ordering::Relaxed);
        if new_queue || session.checkpoint(ledger).await?.is_none() {
            let until = self.decided(&mut history).await?;
            session.begin_replay(ledger, until).await?;
            self.new_queue.store(false, Ordering::Relaxed);
        }
        loop {
            let checkpoint = session.checkpoint(ledger).await?;
            let Some(Checkpoint { position, replay_until: Some(until), .. }) = checkpoint else {
                return Ok(());
            };
            // This lock keeps other instances from replaying and from sweeping.
            if !session.try_own(ledger, Lock::Checkpoint).await? {
                self.probe.not_ready("waiting until another instance has applied the history");
                sleep(OWN_PAUSE).await;
                continue;
            }
            let replayed = self.replay_part(session, (position, until)).await;
            session.disown(ledger, Lock::Checkpoint).await?;
            replayed?;
        }
    }

    async fn decided(&self, history: &mut History) -> Result<Position, Error> {
        loop {
            match history.decided(FENCE_PATIENCE).await? {
                Decided::UpTo(position) => return Ok(position),
                Decided::HeldUp(writers) => self.probe.not_ready(&writers.to_string()),
            }
        }
    }

    async fn replay_part(
        &self,
        session: &mut Session,
        (from, until): (Position, Position),
    ) -> Result<(), Error> {
        let mut target = Target::of_daemon(self.context, self.model).await?;
        let mut pace = FirstReplay { supervisor: self, owner: session };
        replay(&self.context.store, &mut target, (from, until), &mut pace).await?;
        target.close().await;
        tracing::info!(
            projection = self.model.name(),
            from = from.get(),
            until = until.get(),
            "the history is applied"
        );
        Ok(())
    }
}

/// Reports the progress of the replay before the first delivery.
struct FirstReplay<'r> {
    supervisor: &'r Supervisor<'r>,
    /// Holds the lock of the replay. MySQL ends idle sessions, so this one is pinged.
    owner: &'r mut Session,
}

impl Pace for FirstReplay<'_> {
    type Error = Error;

    async fn keep_alive(&mut self) -> Result<(), Error> {
        Ok(self.owner.ping().await?)
    }

    async fn passed(
        &mut self,
        model: &ReadModel,
        _page: &[StoredEvent],
        Span { from, at, until }: Span,
    ) -> Result<(), Error> {
        let Supervisor { context, probe, .. } = self.supervisor;
        context.metrics.checkpoint(model.name(), at.get());
        probe.not_ready(&format!(
            "applying the history: {} of {} positions",
            at.get() - from.get(),
            until.get() - from.get()
        ));
        Ok(())
    }
}
