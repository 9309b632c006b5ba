//! The queues of a projection, shared by its instances.
//!
//! Every instance consumes every queue. The broker delivers to the consumer with the highest priority; the
//! others wait. So when an instance dies, another one receives its messages at once.
//!
//! Each instance computes the queue assignment from recent heartbeats (`assignment`). To take a queue over, it
//! consumes the queue again with a higher priority than any before. The broker hands the queue over after the
//! previous consumer has settled its deliveries. Only the distribution of the load depends on the assignment.

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
/// How long to wait for another instance to hand a queue over, before taking it over once more. The other
/// instance may be busy with a long batch.
const TAKE_AGAIN: Duration = Duration::from_secs(10);

/// The queues of one projection, on one connection.
pub(super) struct Partitions<'p> {
    pub(super) projection: ConnectedProjection<'p>,
    pub(super) topology: &'p Topology,
    /// Reports that the queues are consumed.
    pub(super) ready: Option<&'p Probe>,
}

/// The state of one queue for the task that distributes the load.
struct QueueSlot {
    /// The priority to consume with. A change makes the consumer start again.
    priority: watch::Sender<i32>,
    activity: watch::Receiver<Activity>,
    opened: Instant,
    /// Since when the queue is assigned to this instance, or when it was last taken over.
    assigned_since: Mutex<Option<Instant>>,
}

impl QueueSlot {
    fn is_held(&self) -> bool {
        let Activity { last_delivery, unsettled } = *self.activity.borrow();
        unsettled || last_delivery.is_some_and(|at| at.elapsed() < HOLDS)
    }

    /// Whether the queue has brought nothing for [`QUIET`].
    fn is_quiet(&self) -> bool {
        let Activity { last_delivery, unsettled } = *self.activity.borrow();
        !unsettled && last_delivery.unwrap_or(self.opened).elapsed() >= QUIET
    }

    /// Records the assignment of the queue. Returns whether this instance must take the queue over.
    ///
    /// `contested` means that another instance holds the queue.
    fn must_take(&self, assigned: bool, contested: bool) -> bool {
        let mut since = self.assigned_since.lock().unwrap_or_else(PoisonError::into_inner);
        // An instance that loses a queue keeps consuming until another one takes the queue over.
        let Some(at) = since.filter(|_| assigned) else {
            *since = assigned.then(Instant::now);
            return assigned;
        };
        // The others may have missed heartbeats of this instance and taken the queue over.
        let lost = contested && !self.is_held() && at.elapsed() > TAKE_AGAIN;
        if lost {
            *since = Some(Instant::now());
        }
        lost
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
            let (priority, wanted) = watch::channel(0);
            let (sender, activity) = watch::channel(Activity::default());
            let (opened, assigned_since) = (Instant::now(), Mutex::default());
            slots.push(QueueSlot { priority, activity, opened, assigned_since });
            queues.push(self.follow_or_stop_all(number, wanted, sender, &stop));
        }
        // Done before the first queue is consumed: otherwise a new priority would make consumers start again.
        let mut session = None;
        if let Err(error) = self.distribute_once(&mut session, &slots).await {
            tracing::debug!(
                error = chain(&error),
                "the queue assignment was not updated; it is tried again"
            );
        }
        let (distributed, results) = tokio::join!(
            self.distribute(session, &slots, &stop),
            futures_util::future::join_all(queues)
        );
        results.into_iter().chain([distributed]).collect()
    }

    /// Follows one queue. Its end stops all others.
    async fn follow_or_stop_all(
        &self,
        number: usize,
        wanted: watch::Receiver<i32>,
        activity: watch::Sender<Activity>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let result = self.follow_one(number, wanted, &activity, stop).await;
        stop.cancel();
        result
    }

    async fn follow_one(
        &self,
        number: usize,
        mut wanted: watch::Receiver<i32>,
        activity: &watch::Sender<Activity>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let queue = &self.topology.queues[number];
        while !stop.is_cancelled() {
            let priority = *wanted.borrow_and_update();
            let queue = (number, queue);
            let open = Consumer::open(self.projection, queue, priority, activity.clone());
            let Some(consumer) = stop.run_until_cancelled(open).await else { break };
            let mut consumer = consumer?;
            if let Some(ready) = self.ready {
                ready.ok();
            }
            let again = stop.child_token();
            let changed = async {
                // This cannot fail: the sender outlives this future.
                drop(wanted.changed().await);
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

    /// Records heartbeats and takes over the queues that are assigned to this instance, until `stop`. Stops
    /// all consumers when the projection is paused, or when other files or tables are in service.
    async fn distribute(
        &self,
        mut session: Option<Session>,
        slots: &[QueueSlot],
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        while stop.run_until_cancelled(sleep(HEARTBEAT)).await.is_some() {
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
        for ((number, slot), holder) in (1_u16..).zip(slots).zip(assign(&ids, partitions)) {
            let others = instances.iter().filter(|other| other.id != own.id);
            let contested = others.clone().any(|other| other.partitions.contains(&number));
            if slot.must_take(holder == own.id, contested) {
                let priority = connected.next_priority(&self.projection.model.ledger).await?;
                slot.priority.send_replace(priority);
            }
        }
        *session = Some(connected);
        Ok(())
    }
}
