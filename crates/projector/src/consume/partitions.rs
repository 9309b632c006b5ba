//! The queues of a projection, shared by its instances.
//!
//! Every instance consumes every queue. The broker delivers to one consumer, the active one; the others wait in
//! the order in which they started. So when an instance dies, another one receives its messages.
//!
//! Each instance computes the queue assignment from recent heartbeats (`assignment`). An instance that receives
//! the messages of a queue that is assigned to another one gives way: it settles its deliveries, and starts to
//! consume again behind the others. Only the distribution of the load depends on the assignment.
//!
//! Consumers have no priorities. RabbitMQ 4.3 leaves a queue without an active consumer for good when a consumer
//! with a higher priority joins while the active one sits on a dead node of the cluster.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use daemon::{CancellationToken, Probe, chain};
use read_model::{Instance, Session};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::assignment::assign;
use super::batches::QUIET;
use super::consumer::{Activity, ConnectedProjection, Consumer};
use crate::context::host;
use crate::error::Error;
use crate::topology::Topology;

/// How often an instance records its heartbeat.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// An instance holds a queue for this long after the last delivery.
const HOLDS: Duration = Duration::from_millis(1_500);
/// The shortest time between two times that an instance gives way in one queue: instances may differ in the
/// assignment for a while.
const GIVE_WAY_PAUSE: Duration = Duration::from_secs(2);
/// How often an instance asks the broker whether its queues have consumers.
const PRESENCE_CHECK: Duration = Duration::from_secs(5);
/// A queue counts as not consumed after this many checks in a row. RabbitMQ also reports 0 consumers when the
/// leader of a queue is slow to answer, and instances give way now and then.
const ABSENT_CHECKS: u32 = 3;

/// The queues of one projection, on one connection.
pub(super) struct Partitions<'p> {
    pub(super) projection: ConnectedProjection<'p>,
    pub(super) topology: &'p Topology,
    /// Reports that the queues are consumed.
    pub(super) ready: Option<&'p Probe>,
}

/// The state of one queue for the task that distributes the load.
struct QueueSlot {
    /// A change makes the consumer start again, behind those of the other instances.
    turn: watch::Sender<()>,
    activity: watch::Receiver<Activity>,
    opened: Instant,
    /// When this instance last gave way.
    gave_way: Mutex<Option<Instant>>,
}

impl QueueSlot {
    fn is_held(&self) -> bool {
        let Activity { last_delivery, unsettled } = *self.activity.borrow();
        let gave_way = *self.gave_way.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |at: &Instant| gave_way.is_none_or(|gave_way| *at > gave_way);
        unsettled || last_delivery.filter(since).is_some_and(|at| at.elapsed() < HOLDS)
    }

    /// Whether the queue has brought nothing for [`QUIET`].
    fn is_quiet(&self) -> bool {
        let Activity { last_delivery, unsettled } = *self.activity.borrow();
        !unsettled && last_delivery.unwrap_or(self.opened).elapsed() >= QUIET
    }

    /// Lets another instance have the queue, if this one holds it.
    fn give_way(&self) {
        if !self.is_held() {
            return;
        }
        let mut last = self.gave_way.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() > GIVE_WAY_PAUSE) {
            *last = Some(Instant::now());
            self.turn.send_replace(());
        }
    }
}

impl Partitions<'_> {
    /// Applies the deliveries of all queues, until `stop` or the first error.
    pub(super) async fn follow(&self, stop: &CancellationToken) -> Result<(), Error> {
        // The first error stops all consumers; each of them still settles its deliveries.
        let stop = stop.child_token();
        let mut slots = Vec::new();
        let mut queues = Vec::new();
        for number in 0..self.topology.queues.len() {
            let (turn, turns) = watch::channel(());
            let (sender, activity) = watch::channel(Activity::default());
            let (opened, gave_way) = (Instant::now(), Mutex::default());
            slots.push(QueueSlot { turn, activity, opened, gave_way });
            queues.push(self.follow_or_stop_all(number, turns, sender, &stop));
        }
        let (distributed, present, results) = tokio::join!(
            self.distribute(&slots, &stop),
            self.require_consumers(&stop),
            futures_util::future::join_all(queues)
        );
        results.into_iter().chain([distributed, present]).collect()
    }

    /// Fails when a queue has no consumer any more, or does not exist, although this instance consumes it.
    ///
    /// RabbitMQ cancels the consumers of a deleted queue, but not always: not when the queue was deleted while a
    /// node of its cluster was down.
    async fn require_consumers(&self, stop: &CancellationToken) -> Result<(), Error> {
        let mut absent: HashMap<&str, u32> = HashMap::new();
        while stop.run_until_cancelled(sleep(PRESENCE_CHECK)).await.is_some() {
            for queue in &self.topology.queues {
                let consumers = self.projection.connection.consumers(&queue.name);
                let Some(found) = stop.run_until_cancelled(consumers).await else { return Ok(()) };
                let checks = absent.entry(&queue.name).or_default();
                match found {
                    Ok(Some(1..)) => *checks = 0,
                    // Says nothing about the queue. A lost connection is noticed by the consumers.
                    Err(broker::Error::Timeout { .. } | broker::Error::Lost) => {}
                    Ok(_) | Err(_) => *checks += 1,
                }
                if *checks >= ABSENT_CHECKS {
                    stop.cancel();
                    return Err(broker::Error::NotConsumed { queue: queue.name.clone() }.into());
                }
            }
        }
        Ok(())
    }

    /// Follows one queue. Its end stops all others.
    async fn follow_or_stop_all(
        &self,
        number: usize,
        turns: watch::Receiver<()>,
        activity: watch::Sender<Activity>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let result = self.follow_one(number, turns, &activity, stop).await;
        stop.cancel();
        result
    }

    async fn follow_one(
        &self,
        number: usize,
        mut turns: watch::Receiver<()>,
        activity: &watch::Sender<Activity>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let queue = &self.topology.queues[number];
        while !stop.is_cancelled() {
            turns.mark_unchanged();
            let open = Consumer::open(self.projection, (number, queue), activity.clone());
            let Some(consumer) = stop.run_until_cancelled(open).await else { break };
            let mut consumer = consumer?;
            if let Some(ready) = self.ready {
                ready.ok();
            }
            let again = stop.child_token();
            let changed = async {
                // This cannot fail: the sender outlives this future.
                drop(turns.changed().await);
                again.cancel();
                std::future::pending::<()>().await;
            };
            let result = tokio::select! {
                result = consumer.follow(&again) => result,
                () = changed => Ok(()),
            };
            if result.is_err() {
                // The other consumers stop at once, not after this one has closed.
                stop.cancel();
            }
            consumer.close().await;
            result?;
        }
        Ok(())
    }

    /// Records heartbeats and gives way in the queues that are assigned to other instances, until `stop`. Stops
    /// all consumers when the projection is paused, or when other files or tables are in service.
    async fn distribute(&self, slots: &[QueueSlot], stop: &CancellationToken) -> Result<(), Error> {
        let (mut session, mut result) = (None, Ok(()));
        let mut pause = Duration::ZERO;
        while stop.run_until_cancelled(sleep(pause)).await.is_some() {
            pause = HEARTBEAT;
            match stop.run_until_cancelled(self.distribute_once(&mut session, slots)).await {
                None => break,
                Some(Ok(())) => {}
                // Without events, no batch would find out.
                Some(Err(error @ (Error::Replaced | Error::Paused { .. }))) => {
                    result = Err(error);
                    stop.cancel();
                }
                Some(Err(error)) => {
                    tracing::debug!(
                        error = chain(&error),
                        "the queue assignment was not updated; it is tried again"
                    );
                    session = None;
                }
            }
        }
        // Other instances take the queues over at once, not after missing heartbeats.
        if let Ok(mut session) = Session::connect(&self.projection.context.mysql).await {
            let left = session
                .leave(&self.projection.model.ledger, self.projection.context.instance)
                .await;
            if let Err(error) = left {
                tracing::debug!(
                    error = chain(&error),
                    "this instance stopped, but the other instances were not informed"
                );
            }
            session.close().await;
        }
        result
    }

    async fn distribute_once(
        &self,
        session: &mut Option<Session>,
        slots: &[QueueSlot],
    ) -> Result<(), Error> {
        let mut connected = match session.take() {
            Some(session) => session,
            None => Session::connect(&self.projection.context.mysql).await?,
        };
        for (number, _slot) in slots.iter().enumerate().filter(|(_, slot)| slot.is_quiet()) {
            self.projection.batches.quiet(number);
        }
        let held = (1_u16..).zip(slots).filter(|(_, slot)| slot.is_held());
        let partitions = u16::try_from(slots.len()).unwrap_or(u16::MAX);
        let own = Instance {
            id: self.projection.context.instance,
            host: host(),
            of: partitions,
            partitions: held.map(|(number, _)| number).collect(),
        };
        let model = self.projection.model;
        let gate = connected.gate(&model.ledger).await?;
        if let Some(reason) = gate.paused {
            return Err(Error::Paused { reason });
        }
        if model.generation() != Some(gate.generation) {
            return Err(Error::Replaced);
        }
        let instances = connected.heartbeat(&model.ledger, &own).await?;
        let ids: Vec<_> = instances.iter().map(|instance| instance.id).collect();
        for (slot, holder) in slots.iter().zip(assign(&ids, partitions)) {
            if holder != own.id {
                slot.give_way();
            }
        }
        *session = Some(connected);
        Ok(())
    }
}
