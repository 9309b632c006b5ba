//! What the workers of a relay rely on: the floor of the outbox, and how many workers share the
//! lanes.

use std::iter::Cycle;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use daemon::{Failure, Probe, chain};
use event_store::{Fence, Lane, OutboxId, Session};
use tokio::time::sleep;

use crate::worker::Shared;

/// How often to look while events are published, and while there are none.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Shared by the workers of a relay.
pub(crate) struct Survey {
    /// How many lanes a worker claims at once.
    lanes: AtomicU16,
}

impl Survey {
    pub(crate) fn new(lanes: u16) -> Self {
        Self { lanes: AtomicU16::new(lanes) }
    }

    pub(crate) fn lanes(&self) -> u16 {
        self.lanes.load(Ordering::Relaxed)
    }
}

/// A fair share of the lanes, of which at most `limit` are claimed at once.
fn share(workers: u32, limit: u16) -> u16 {
    let share = u32::from(Lane::COUNT).div_ceil(workers.max(1));
    u16::try_from(share).unwrap_or(Lane::COUNT).clamp(1, limit)
}

/// Keeps the survey, the floor of the outbox and the gauges of the backlog fresh.
pub(crate) async fn survey(shared: Arc<Shared>, probe: Probe) -> Result<(), Failure> {
    let mut surveyor = Surveyor::new(&shared);
    while !shared.shutdown.is_cancelled() {
        let pause = match shared.shutdown.run_until_cancelled(surveyor.look()).await {
            None => break,
            Some(Ok(busy)) => {
                probe.ok();
                if busy { BUSY_INTERVAL } else { IDLE_INTERVAL }
            }
            Some(Err(error)) => {
                probe.failing(&chain(&error));
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
    /// Where the floor was last.
    floor: Option<OutboxId>,
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
        Self {
            shared,
            session: None,
            fence: None,
            floor: None,
            doubted,
            counted: None,
            sampled: None,
        }
    }

    /// Says whether the floor has moved, or cannot yet.
    async fn look(&mut self) -> Result<bool, event_store::Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.shared.store).await?,
        };
        let busy = self.move_floor(&mut session).await?;
        if self.counted.is_none_or(|at| at.elapsed() >= IDLE_INTERVAL) {
            self.counted = Some(Instant::now());
            self.count_workers(&mut session).await?;
            self.doubt(&mut session).await?;
        }
        if self.sampled.is_none_or(|at| at.elapsed() >= SAMPLE_INTERVAL) {
            self.sampled = Some(Instant::now());
            let backlog = session.backlog().await?;
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
        session.refresh_fence(&mut fence).await?;
        if !fence.is_decided() {
            self.fence = Some(fence);
            return Ok(true);
        }
        let floor = session.raise_floor(&fence).await?;
        Ok(self.floor.replace(floor) != Some(floor))
    }

    async fn count_workers(&self, session: &mut Session) -> Result<(), event_store::Error> {
        let workers = session.count_workers(self.shared.workers_name).await?;
        let own = u32::from(self.shared.settings.workers);
        let lanes = share(workers.max(own), self.shared.settings.lanes_per_claim);
        self.shared.survey.lanes.store(lanes, Ordering::Relaxed);
        Ok(())
    }

    async fn doubt(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
        if let Some(lane) = self.doubted.next()
            && let Some(found) = session.lower_floor(lane).await?
        {
            tracing::error!(id = found.get(), "an event was pending below the floor");
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
