//! The queues of a projection, shared by its instances.
//!
//! Every instance consumes every queue; the broker delivers to the consumer with the highest priority
//! and keeps the others waiting. So when an instance dies, another has its queues at once. Each instance
//! computes the queue assignment from recent heartbeats (`assignment`). It takes a queue over by consuming
//! it again with a higher priority than any before; the broker hands the queue over once the previous
//! consumer has settled its deliveries. Nothing but the spread of the load depends on this.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use daemon::{CancellationToken, Probe, chain};
use read_model::{Instance, Session};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::assignment::assign;
use super::consumer::{Consumer, Followed, Served};
use crate::context::host;
use crate::error::Error;
use crate::topology::Topology;

/// How often an instance says that it is there.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A queue that delivered to this instance within this time is its.
const HOLDS: Duration = Duration::from_millis(1_500);
/// How long to wait for a queue that another instance has, before it is taken once more: the other may be
/// in a batch that takes long.
const TAKE_AGAIN: Duration = Duration::from_secs(10);

/// The queues of one projection, on one connection.
pub(super) struct Partitions<'p> {
    pub(super) projection: Followed<'p>,
    pub(super) topology: &'p Topology,
    /// Reports that the queues are followed.
    pub(super) ready: Option<&'p Probe>,
}

/// A queue, as seen by the task that spreads the load.
struct Seat {
    /// With which priority to consume.
    priority: watch::Sender<i32>,
    /// What it gives.
    served: watch::Receiver<Served>,
    /// Since when it is to be this instance's.
    mine: Mutex<Option<Instant>>,
}

impl Seat {
    fn is_held(&self) -> bool {
        let served = *self.served.borrow();
        served.unsettled || served.last.is_some_and(|at| at.elapsed() < HOLDS)
    }

    /// Notes whether this instance should have the queue; says whether it has to take it over.
    fn must_take(&self, should: bool, contested: bool) -> bool {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        // Who loses a queue goes on until another one takes it.
        let Some(since) = mine.filter(|_| should) else {
            *mine = should.then(Instant::now);
            return should;
        };
        // Another instance took it while this one was thought to have gone.
        let lost = contested && !self.is_held() && since.elapsed() > TAKE_AGAIN;
        if lost {
            *mine = Some(Instant::now());
        }
        lost
    }
}

impl Partitions<'_> {
    /// Applies what the queues deliver, until `stop` or the first error of one of them.
    pub(super) async fn follow(&self, stop: &CancellationToken) -> Result<(), Error> {
        // The first error ends all consumers, each in order.
        let stop = stop.child_token();
        let mut seats = Vec::new();
        let mut queues = Vec::new();
        for number in 0..self.topology.queues.len() {
            let (priority, wanted) = watch::channel(0);
            let (serves, served) = watch::channel(Served::default());
            seats.push(Seat { priority, served, mine: Mutex::default() });
            queues.push(self.guarded(number, wanted, serves, &stop));
        }
        // Before the first queue is consumed, so that each is consumed but once.
        let mut session = None;
        if let Err(error) = self.spread_once(&mut session, &seats).await {
            tracing::debug!(error = chain(&error), "the load cannot be spread for now");
        }
        let (_left, results) = tokio::join!(
            self.spread(session, &seats, &stop),
            futures_util::future::join_all(queues)
        );
        results.into_iter().collect()
    }

    /// Follows one queue; its end ends the others.
    async fn guarded(
        &self,
        number: usize,
        wanted: watch::Receiver<i32>,
        serves: watch::Sender<Served>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let result = self.follow_one(number, wanted, &serves, stop).await;
        stop.cancel();
        result
    }

    async fn follow_one(
        &self,
        number: usize,
        mut wanted: watch::Receiver<i32>,
        serves: &watch::Sender<Served>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let queue = &self.topology.queues[number];
        while !stop.is_cancelled() {
            let priority = *wanted.borrow_and_update();
            let open = Consumer::open(self.projection, queue, priority, serves.clone());
            let Some(consumer) = stop.run_until_cancelled(open).await else { break };
            let mut consumer = consumer?;
            if let Some(ready) = self.ready {
                ready.ok();
            }
            let again = stop.child_token();
            let changed = async {
                // The sender lives as long as this.
                drop(wanted.changed().await);
                again.cancel();
                std::future::pending::<()>().await;
            };
            let result = tokio::select! {
                result = consumer.follow(&again) => result,
                () = changed => Ok(()),
            };
            if result.is_err() {
                // The others need not wait until this one has left.
                stop.cancel();
            }
            consumer.leave().await;
            result?;
        }
        Ok(())
    }

    /// Says that this instance is there, and takes the queues that it should have.
    async fn spread(&self, mut session: Option<Session>, seats: &[Seat], stop: &CancellationToken) {
        while stop.run_until_cancelled(sleep(HEARTBEAT)).await.is_some() {
            match stop.run_until_cancelled(self.spread_once(&mut session, seats)).await {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::debug!(error = chain(&error), "the load cannot be spread for now");
                    session = None;
                }
            }
        }
        // Others need not wait until it is missed.
        if let Ok(mut session) = Session::connect(&self.projection.context.mysql).await {
            let left = session
                .leave(&self.projection.model.ledger, self.projection.context.instance)
                .await;
            if let Err(error) = left {
                tracing::debug!(error = chain(&error), "this instance left without saying so");
            }
            session.close().await;
        }
    }

    async fn spread_once(
        &self,
        session: &mut Option<Session>,
        seats: &[Seat],
    ) -> Result<(), Error> {
        let mut connected = match session.take() {
            Some(session) => session,
            None => Session::connect(&self.projection.context.mysql).await?,
        };
        let held = (1_u16..).zip(seats).filter(|(_, seat)| seat.is_held());
        let partitions = u16::try_from(seats.len()).unwrap_or(u16::MAX);
        let own = Instance {
            id: self.projection.context.instance,
            host: host(),
            of: partitions,
            partitions: held.map(|(number, _)| number).collect(),
        };
        let instances = connected.heartbeat(&self.projection.model.ledger, &own).await?;
        let ids: Vec<_> = instances.iter().map(|instance| instance.id).collect();
        for ((number, seat), holder) in (1_u16..).zip(seats).zip(assign(&ids, partitions)) {
            let others = instances.iter().filter(|other| other.id != own.id);
            let contested = others.clone().any(|other| other.partitions.contains(&number));
            if seat.must_take(holder == own.id, contested) {
                let priority = connected.next_priority(&self.projection.model.ledger).await?;
                seat.priority.send_replace(priority);
            }
        }
        *session = Some(connected);
        Ok(())
    }
}
