//! A background task that keeps up to date: the floor of the outbox, the number of workers that share the
//! lanes, the gauges of the backlog, whether another session has locked lanes, and what the relay reports
//! to `outbox-relay status`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::cause::time;
use daemon::{Failure, Health, Probe, chain};
use event_store::{Fence, Lane, OutboxId, Relay, Rows, Session};
use tokio::time::sleep;

use crate::commands::of_locker;
use crate::context::Context;

/// Pause between rounds while the floor moves.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
/// Pause between rounds while the floor stays, and after an error.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a check of lanes may take. A longer one, beside an old snapshot, checks fewer lanes next time.
const CHECK_LIMIT: Duration = Duration::from_millis(50);

/// Surveys until shutdown.
pub(crate) async fn survey(
    context: Arc<Context>,
    health: Health,
    probe: Probe,
    lanes: Probe,
) -> Result<(), Failure> {
    let mut surveyor = Surveyor::new(&context, health, lanes);
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
    health: Health,
    /// Says that another session has locked lanes.
    lanes_probe: Probe,
    /// The lanes, checked in turn for pending rows below the floor, which would never be published.
    lanes: Vec<Lane>,
    /// How many lanes are checked at once.
    checked_at_once: usize,
    /// What the session reports by its name.
    shown: Option<String>,
    /// When the workers were last counted and lanes were checked.
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
    fn new(context: &'c Context, health: Health, lanes_probe: Probe) -> Self {
        let lanes: Vec<_> = Lane::all().collect();
        Self {
            context,
            health,
            lanes_probe,
            checked_at_once: lanes.len(),
            lanes,
            shown: None,
            session: None,
            fence: None,
            floor: None,
            counted: None,
            sampled: None,
        }
    }

    async fn round(&mut self) -> Result<Floor, event_store::Error> {
        let mut session = if let Some(session) = self.session.take() {
            session
        } else {
            self.shown = None;
            Session::connect(&self.context.survey_store).await?
        };
        let floor = self.move_floor(&mut session).await?;
        if self.counted.is_none_or(|at| at.elapsed() >= IDLE_INTERVAL) {
            self.counted = Some(Instant::now());
            self.count_workers(&mut session).await?;
            self.check_lanes(&mut session).await?;
            self.check_lockers(&mut session).await?;
            self.show(&mut session).await?;
        }
        if self.sampled.is_none_or(|at| at.elapsed() >= SAMPLE_INTERVAL) {
            self.sampled = Some(Instant::now());
            let backlog = session.backlog(Rows::FromFloor).await?;
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

    async fn check_lanes(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
        let begun = Instant::now();
        let lowered = session.lower_floor(&self.lanes[..self.checked_at_once]).await?;
        self.lanes.rotate_left(self.checked_at_once);
        self.checked_at_once = if begun.elapsed() > CHECK_LIMIT {
            (self.checked_at_once / 2).max(1)
        } else {
            (self.checked_at_once * 2).min(self.lanes.len())
        };
        if let Some(id) = lowered {
            let id = id.get();
            tracing::warn!(
                id,
                "events were pending below the floor: the ids of the outbox went back"
            );
        }
        Ok(())
    }

    /// Lanes that another session has locked are not published, whatever else works.
    async fn check_lockers(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
        match session.lane_lockers().await?.first() {
            None => self.lanes_probe.ok(),
            Some(locker) => {
                let cause = of_locker(locker);
                self.lanes_probe.failing(&cause.line());
            }
        }
        Ok(())
    }

    /// Shows the state of the broker in the name of the session, for `outbox-relay status`.
    async fn show(&mut self, session: &mut Session) -> Result<(), event_store::Error> {
        let state = match self.health.failure("rabbitmq") {
            Some((_, since)) => format!(": no RabbitMQ since {}", time(since)),
            None => match self.health.note("rabbitmq") {
                Some((_, since)) => {
                    let rate = self.context.metrics.confirms.rate();
                    format!(": slow {rate:.1}/s since {}", time(since))
                }
                None => String::new(),
            },
        };
        let name = format!("{}{state}", Relay::NAME);
        if self.shown.as_ref() != Some(&name) {
            session.show_as(&name).await?;
            self.shown = Some(name);
        }
        Ok(())
    }
}
