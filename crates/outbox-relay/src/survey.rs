//! What the workers of a relay know of the whole: where pending rows begin, and how many workers
//! share the lanes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use daemon::{Failure, chain};
use event_store::{Fence, Floor, OutboxId, Session};
use tokio::time::sleep;

use crate::worker::Shared;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often to look again at the transactions that a fence waits for.
const FENCE_POLL: Duration = Duration::from_millis(200);
/// How often to look for pending rows from the first one on, in case the floor is wrong: nothing that
/// is known can make it so, but an event below it would wait for ever.
const DOUBT_INTERVAL: Duration = Duration::from_mins(1);
/// How often the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
const LANES: u16 = 64;

/// Shared by the workers of a relay.
pub(crate) struct Survey {
    pub(crate) floor: Floor,
    /// How many lanes a worker claims at once.
    lanes: AtomicU16,
}

impl Survey {
    pub(crate) fn new(lanes: u16) -> Self {
        Self { floor: Floor::default(), lanes: AtomicU16::new(lanes) }
    }

    pub(crate) fn lanes(&self) -> u16 {
        self.lanes.load(Ordering::Relaxed)
    }
}

/// A fair share of the lanes, of which at most `limit` are claimed at once.
fn share(workers: u32, limit: u16) -> u16 {
    let share = u32::from(LANES).div_ceil(workers.max(1));
    u16::try_from(share).unwrap_or(LANES).clamp(1, limit)
}

/// Keeps the survey and the gauges of the backlog fresh. The workers report a lost server, so this
/// does not.
pub(crate) async fn survey(shared: Arc<Shared>) -> Result<(), Failure> {
    let mut surveyor = Surveyor { shared: &shared, session: None, fence: None, doubted: None };
    let mut sampled: Option<Instant> = None;
    while !shared.shutdown.is_cancelled() {
        let sample = sampled.is_none_or(|at| at.elapsed() >= SAMPLE_INTERVAL);
        match shared.shutdown.run_until_cancelled(surveyor.look(sample)).await {
            None => break,
            Some(Ok(())) if sample => sampled = Some(Instant::now()),
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "a survey was put off");
                surveyor.session = None;
                surveyor.fence = None;
                shared.survey.floor.reset();
            }
        }
        let pause = if surveyor.fence.is_some() { FENCE_POLL } else { INTERVAL };
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
    /// When the floor was last looked for from the first row on.
    doubted: Option<Instant>,
}

impl Surveyor<'_> {
    async fn look(&mut self, sample: bool) -> Result<(), event_store::Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.shared.store).await?,
        };
        self.move_floor(&mut session).await?;
        let workers = session.count_workers(self.shared.workers_name).await?;
        let own = u32::from(self.shared.settings.workers);
        let lanes = share(workers.max(own), self.shared.settings.lanes_per_claim);
        self.shared.survey.lanes.store(lanes, Ordering::Relaxed);
        if sample {
            let backlog = session.backlog().await?;
            self.shared.metrics.backlog(&backlog, &session.waiting_streams().await?);
        }
        self.session = Some(session);
        Ok(())
    }

    async fn move_floor(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
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
            return Ok(());
        }
        let before = floor.get();
        let doubt = self.doubted.is_none_or(|at| at.elapsed() >= DOUBT_INTERVAL);
        let from = if doubt { OutboxId::from(0) } else { before };
        let advanced = floor.advance(before, session.lowest_pending(&fence, from).await?);
        if doubt && advanced {
            self.doubted = Some(Instant::now());
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
