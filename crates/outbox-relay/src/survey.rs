//! A background task that keeps three things up to date: the floor of the outbox, the number of
//! workers that share the lanes, and the gauges of the backlog.

use std::iter::Cycle;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use daemon::{Failure, Probe, chain};
use event_store::{Fence, Lane, OutboxId, Session};
use tokio::time::sleep;

use crate::context::Context;

/// Pause between rounds while the floor moves.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
/// Pause between rounds while the floor stays, and after an error.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Surveys until shutdown.
pub(crate) async fn survey(context: Arc<Context>, probe: Probe) -> Result<(), Failure> {
    let mut surveyor = Surveyor::new(&context);
    while !context.shutdown.is_cancelled() {
        let pause = match context.shutdown.run_until_cancelled(surveyor.round()).await {
            None => break,
            Some(Ok(floor)) => {
                probe.ok();
                match floor {
                    Floor::Moving => BUSY_INTERVAL,
                    Floor::Resting => IDLE_INTERVAL,
                }
            }
            Some(Err(error)) => {
                probe.failing(&chain(&error));
                surveyor.session = None;
                surveyor.fence = None;
                IDLE_INTERVAL
            }
        };
        context.shutdown.run_until_cancelled(sleep(pause)).await;
    }
    if let Some(session) = surveyor.session {
        session.close().await;
    }
    Ok(())
}

struct Surveyor<'c> {
    context: &'c Context,
    session: Option<Session>,
    /// A fence that waits for open transactions.
    fence: Option<Fence>,
    /// The floor after the last round.
    floor: Option<OutboxId>,
    /// The lanes, each rechecked in turn for a pending row below the floor. No known fault leaves a
    /// row there, but such a row would never be published.
    rechecks: Cycle<IntoIter<Lane>>,
    /// When the workers were last counted and a lane was rechecked.
    counted: Option<Instant>,
    sampled: Option<Instant>,
}

/// What the floor did in a round.
enum Floor {
    /// It moved, or will once an open transaction has ended.
    Moving,
    Resting,
}

impl<'c> Surveyor<'c> {
    fn new(context: &'c Context) -> Self {
        let rechecks = Lane::all().collect::<Vec<_>>().into_iter().cycle();
        Self {
            context,
            session: None,
            fence: None,
            floor: None,
            rechecks,
            counted: None,
            sampled: None,
        }
    }

    async fn round(&mut self) -> Result<Floor, event_store::Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.context.store).await?,
        };
        let floor = self.move_floor(&mut session).await?;
        if self.counted.is_none_or(|at| at.elapsed() >= IDLE_INTERVAL) {
            self.counted = Some(Instant::now());
            self.count_workers(&mut session).await?;
            self.recheck_lane(&mut session).await?;
        }
        if self.sampled.is_none_or(|at| at.elapsed() >= SAMPLE_INTERVAL) {
            self.sampled = Some(Instant::now());
            let backlog = session.backlog().await?;
            self.context.metrics.backlog(&backlog, &session.waiting_streams().await?);
        }
        self.session = Some(session);
        Ok(floor)
    }

    async fn move_floor(&mut self, session: &mut Session) -> Result<Floor, event_store::Error> {
        let mut fence = match self.fence.take() {
            Some(fence) => fence,
            None => session.take_outbox_fence().await?,
        };
        session.refresh_fence(&mut fence).await?;
        if !fence.is_decided() {
            self.fence = Some(fence);
            return Ok(Floor::Moving);
        }
        let floor = session.raise_floor(&fence).await?;
        let moved = self.floor.replace(floor) != Some(floor);
        Ok(if moved { Floor::Moving } else { Floor::Resting })
    }

    async fn count_workers(&self, session: &mut Session) -> Result<(), event_store::Error> {
        let connected = session.count_workers(self.context.workers_name).await?;
        let own = u32::from(self.context.settings.workers);
        self.context.lane_share.divide(connected.max(own));
        Ok(())
    }

    async fn recheck_lane(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
        if let Some(lane) = self.rechecks.next()
            && let Some(found) = session.lower_floor(lane).await?
        {
            tracing::error!(id = found.get(), "an event was pending below the floor");
        }
        Ok(())
    }
}
