//! What the workers of a relay know of the whole: where pending rows begin, and how many workers
//! share the lanes.

use std::iter::Cycle;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use daemon::{Failure, chain};
use event_store::{Fence, Floor, Lane, OutboxId, Session};
use tokio::time::sleep;

use crate::worker::Shared;

/// How often to look while events are published, and while there are none.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// How long workers wait for the first floor. Without one they walk over all dead index entries.
const FLOOR_PATIENCE: Duration = Duration::from_secs(5);

/// Shared by the workers of a relay.
pub(crate) struct Survey {
    pub(crate) floor: Floor,
    /// How many lanes a worker claims at once.
    lanes: AtomicU16,
    /// The server that the floor is of.
    server: Mutex<String>,
    begun: Instant,
}

impl Survey {
    pub(crate) fn new(lanes: u16) -> Self {
        Self {
            floor: Floor::default(),
            lanes: AtomicU16::new(lanes),
            server: Mutex::default(),
            begun: Instant::now(),
        }
    }

    pub(crate) fn lanes(&self) -> u16 {
        self.lanes.load(Ordering::Relaxed)
    }

    /// Whether to wait a moment for the first floor.
    pub(crate) fn is_awaited(&self) -> bool {
        self.floor.get() == OutboxId::from(0) && self.begun.elapsed() < FLOOR_PATIENCE
    }

    /// Notes which server a new connection leads to. On another one, or after a crash, ids may be
    /// handed out again.
    pub(crate) fn note_server(&self, server: &str) {
        let mut known = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != server {
            server.clone_into(&mut known);
            self.floor.reset();
        }
    }
}

/// A fair share of the lanes, of which at most `limit` are claimed at once.
fn share(workers: u32, limit: u16) -> u16 {
    let share = u32::from(Lane::COUNT).div_ceil(workers.max(1));
    u16::try_from(share).unwrap_or(Lane::COUNT).clamp(1, limit)
}

/// Keeps the survey and the gauges of the backlog fresh. The workers report a lost server, so this
/// does not.
pub(crate) async fn survey(shared: Arc<Shared>) -> Result<(), Failure> {
    let mut surveyor = Surveyor::new(&shared);
    while !shared.shutdown.is_cancelled() {
        let pause = match shared.shutdown.run_until_cancelled(surveyor.look()).await {
            None => break,
            Some(Ok(true)) => BUSY_INTERVAL,
            Some(Ok(false)) => IDLE_INTERVAL,
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "a survey was put off");
                surveyor.session = None;
                surveyor.fence = None;
                IDLE_INTERVAL
            }
        };
        shared.shutdown.run_until_cancelled(sleep(pause)).await;
    }
    if let Some(session) = surveyor.session {
        session.close().await;
    }
    Ok(())
}

struct Surveyor<'s> {
    shared: &'s Shared,
    session: Option<Session>,
    /// A fence that open transactions hold up.
    fence: Option<Fence>,
    /// The lanes to check for a pending row below the floor. Nothing that is known can put one there,
    /// but it would wait for ever.
    doubted: Cycle<IntoIter<Lane>>,
    /// When the workers were counted, and a lane was checked.
    counted: Option<Instant>,
    sampled: Option<Instant>,
}

impl<'s> Surveyor<'s> {
    fn new(shared: &'s Shared) -> Self {
        let doubted = Lane::all().collect::<Vec<_>>().into_iter().cycle();
        Self { shared, session: None, fence: None, doubted, counted: None, sampled: None }
    }

    /// Says whether anything was inserted since it last looked.
    async fn look(&mut self) -> Result<bool, event_store::Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.shared.store).await?,
        };
        self.shared.survey.note_server(session.server());
        let busy = self.move_floor(&mut session).await?;
        if self.counted.is_none_or(|at| at.elapsed() >= IDLE_INTERVAL) {
            self.counted = Some(Instant::now());
            self.count_workers(&mut session).await?;
            self.doubt(&mut session).await?;
        }
        if self.sampled.is_none_or(|at| at.elapsed() >= SAMPLE_INTERVAL) {
            self.sampled = Some(Instant::now());
            let backlog = session.backlog(self.shared.survey.floor.get()).await?;
            self.shared.metrics.backlog(&backlog, &session.waiting_streams().await?);
        }
        self.session = Some(session);
        Ok(busy)
    }

    async fn move_floor(&mut self, session: &mut Session) -> Result<bool, event_store::Error> {
        let mut fence = match self.fence.take() {
            Some(fence) => fence,
            None => session.take_outbox_fence().await?,
        };
        let floor = &self.shared.survey.floor;
        if fence.limit().get() + 1 < floor.get().get() {
            // Ids went back: it is another database, or an older state of it.
            floor.reset();
        }
        session.refresh_fence(&mut fence).await?;
        if !fence.is_decided() {
            self.fence = Some(fence);
            return Ok(true);
        }
        let before = floor.get();
        let now = session.lowest_pending(&fence, before).await?;
        floor.advance(before, now);
        Ok(now != before)
    }

    async fn count_workers(&self, session: &mut Session) -> Result<(), event_store::Error> {
        let workers = session.count_workers(self.shared.workers_name).await?;
        let own = u32::from(self.shared.settings.workers);
        let lanes = share(workers.max(own), self.shared.settings.lanes_per_claim);
        self.shared.survey.lanes.store(lanes, Ordering::Relaxed);
        Ok(())
    }

    async fn doubt(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
        let floor = &self.shared.survey.floor;
        if let Some(lane) = self.doubted.next()
            && let Some(found) = session.pending_below(lane, floor.get()).await?
        {
            tracing::error!(id = found.get(), "an event was pending below the floor");
            floor.lower(found);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_lanes_evenly() {
        for (workers, limit, expected) in
            [(0, 16, 16), (1, 64, 64), (2, 16, 16), (4, 64, 16), (16, 16, 4), (100, 16, 1)]
        {
            assert_eq!(share(workers, limit), expected, "{workers} workers, at most {limit}");
        }
    }
}
