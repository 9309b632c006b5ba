//! A worker: passes one after another, over whatever happens to the servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use broker::{Connection, Publisher};
use daemon::backoff::Backoff;
use daemon::{CancellationToken, Exit, Failure, Health, Probe, chain};
use event_store::Session;
use tokio::time::sleep;

use crate::Settings;
use crate::disposition::FailurePolicy;
use crate::hint::Hint;
use crate::metrics::Metrics;
use crate::pass::{Pass, Policy, Trouble, pass};
use crate::survey::Survey;

/// A worker that finishes no pass for so long hangs.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// How often to look whether a blocked broker takes messages again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(500);

/// What all workers of a relay share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: event_store::Options,
    pub(crate) workers_store: event_store::Options,
    pub(crate) broker: broker::Options,
    /// The application name of its workers in PostgreSQL.
    pub(crate) workers_name: &'static str,
    pub(crate) metrics: Metrics,
    pub(crate) survey: Survey,
    pub(crate) hint: Hint,
    pub(crate) shutdown: CancellationToken,
    /// Set once the login worked: from then on a refusal may be a passing one.
    pub(crate) store_seen: AtomicBool,
    pub(crate) broker_seen: AtomicBool,
}

/// One worker, with a connection to each server.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    policy: Policy,
    session: Option<Session>,
    link: Option<Link>,
    store_probe: Probe,
    broker_probe: Probe,
    progress: Probe,
}

/// A connection to the broker.
pub(crate) struct Link {
    pub(crate) publisher: Publisher,
    pub(crate) connection: Connection,
    /// It failed while the broker was blocked. What was sent is still on its way, so no other
    /// connection is made before the broker takes messages again.
    pub(crate) failed: bool,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, health: &Health) -> Self {
        let settings = &shared.settings;
        let policy = Policy {
            events: settings.batch_size,
            bytes: settings.batch_bytes,
            max_message_bytes: settings.max_message_bytes,
            failures: FailurePolicy {
                retry_min: settings.retry_min,
                retry_max: settings.retry_max,
                max_attempts: settings.max_attempts,
                discard_unroutable: settings.discard_unroutable.clone(),
                delete: settings.retention.is_zero(),
            },
        };
        Self {
            policy,
            session: None,
            link: None,
            store_probe: health.probe("postgresql", None),
            broker_probe: health.probe("rabbitmq", None),
            progress: health.probe("relay", Some(SILENCE_LIMIT)),
            shared,
        }
    }

    /// Publishes until shutdown.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let shutdown = self.shared.shutdown.clone();
        let settings = &self.shared.settings;
        let mut reconnect = Backoff::new(Duration::from_millis(100), settings.reconnect_max);
        let (poll_min, poll_max) = (settings.poll_min, settings.poll_max);
        let mut pause = poll_min;
        while !shutdown.is_cancelled() {
            let mut idle = false;
            let wait = match self.step().await {
                Ok(step) => {
                    reconnect.succeeded();
                    idle = matches!(step, Step::Passed(Pass::Idle));
                    pause = match step {
                        Step::Passed(Pass::Full) => Duration::ZERO,
                        Step::Passed(Pass::Some) => poll_min,
                        Step::Passed(Pass::Idle) => (pause * 2).clamp(poll_min, poll_max),
                        Step::Blocked => BLOCKED_PAUSE,
                    };
                    pause
                }
                Err(trouble) => {
                    self.give_up(trouble)?;
                    reconnect.failed()
                }
            };
            if !wait.is_zero() {
                let hint = self.shared.hint.arrived();
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep(wait) => {}
                    () = hint, if idle => pause = poll_min,
                }
            }
        }
        self.leave().await;
        Ok(())
    }

    async fn step(&mut self) -> Result<Step, Trouble> {
        // The broker first: while it is away, PostgreSQL is left alone.
        if self.link.is_none() {
            self.link = Some(self.connect_broker().await.map_err(Trouble::Broker)?);
        }
        if self.session.is_none() {
            self.session = Some(self.connect_store().await.map_err(Trouble::Store)?);
        }
        let (Some(link), Some(session)) = (&mut self.link, &mut self.session) else {
            return Ok(Step::Passed(Pass::Idle));
        };
        if !link.connection.is_connected() {
            return Err(Trouble::Broker(broker::Error::Lost));
        }
        if link.connection.is_blocked() {
            self.broker_probe.failing("RabbitMQ takes no messages: it is short of memory or disk");
            return Ok(Step::Blocked);
        }
        if link.failed {
            link.connection.close().await;
            return Err(Trouble::Broker(broker::Error::Lost));
        }
        let shared = &self.shared;
        let mut passed = pass(session, link, &self.policy, &shared.survey, &shared.metrics).await?;
        if passed == Pass::Idle && shared.hint.is_wanted(shared.settings.poll_max) {
            session.ask_for_hint().await.map_err(Trouble::Store)?;
            passed = pass(session, link, &self.policy, &shared.survey, &shared.metrics).await?;
        }
        self.store_probe.ok();
        self.broker_probe.ok();
        self.progress.ok();
        Ok(Step::Passed(passed))
    }

    async fn connect_broker(&mut self) -> Result<Link, broker::Error> {
        let connection = Connection::connect(&self.shared.broker).await?;
        let settings = &self.shared.settings;
        connection.declare_exchange(&settings.exchange).await?;
        let publisher = connection.publisher(&settings.exchange, settings.confirm_timeout).await?;
        self.shared.broker_seen.store(true, Ordering::Relaxed);
        Ok(Link { publisher, connection, failed: false })
    }

    async fn connect_store(&self) -> Result<Session, event_store::Error> {
        let mut session = Session::connect(&self.shared.workers_store).await?;
        session.require_migrated().await?;
        self.shared.store_seen.store(true, Ordering::Relaxed);
        Ok(session)
    }

    /// Throws away the connection that failed. Fails for good when it was never right.
    fn give_up(&mut self, trouble: Trouble) -> Result<(), Failure> {
        let metrics = &self.shared.metrics;
        match trouble {
            Trouble::Store(error) => {
                self.session = None;
                metrics.lost("postgresql");
                if error.is_configuration() && !self.shared.store_seen.load(Ordering::Relaxed) {
                    return Err(Failure::new(Exit::Login, error));
                }
                self.store_probe.failing(&chain(&error));
                if self.link.is_some() {
                    self.broker_probe.ok();
                }
            }
            Trouble::Broker(error) => {
                // The claim may be half released.
                self.session = None;
                self.link = self.link.take().filter(|link| link.connection.is_blocked());
                if let Some(link) = &mut self.link {
                    link.failed = true;
                }
                metrics.lost("rabbitmq");
                if error.is_configuration() && !self.shared.broker_seen.load(Ordering::Relaxed) {
                    let refused = matches!(error, broker::Error::Login { .. });
                    let exit = if refused { Exit::Login } else { Exit::Configuration };
                    return Err(Failure::new(exit, error));
                }
                self.broker_probe.failing(&chain(&error));
            }
        }
        Ok(())
    }

    async fn leave(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
        if let Some(link) = self.link {
            link.connection.close().await;
        }
    }
}

enum Step {
    Passed(Pass),
    Blocked,
}
