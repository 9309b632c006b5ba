//! A worker runs one pass after another and survives any failure of the servers.

use std::sync::Arc;
use std::time::Duration;

use daemon::backoff::Backoff;
use daemon::{Exit, Failure, Health, Probe, chain};
use event_store::Session;
use tokio::time::sleep;

use crate::context::Context;
use crate::disposition::FailurePolicy;
use crate::error::Error;
use crate::link::Link;
use crate::pace::Pace;
use crate::pass::{Notices, Pass, Policy, pass};

/// A worker that completes no pass for this long counts as hanging.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// How often to check whether a blocked broker takes messages again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(500);

/// One worker, with a connection to each server.
pub(crate) struct Worker {
    context: Arc<Context>,
    policy: Policy,
    session: Option<Session>,
    link: Option<Link>,
    store_probe: Probe,
    broker_probe: Probe,
    progress: Probe,
}

/// What one step of a worker did.
enum Step {
    Passed(Pass),
    /// The broker takes no messages, because it is short of memory or disk.
    BrokerBlocked,
}

impl Worker {
    pub(crate) fn new(context: Arc<Context>, health: &Health) -> Self {
        let settings = &context.settings;
        let policy = Policy {
            pace: Pace::new(settings.batch_size, settings.batch_bytes, settings.confirm_timeout),
            max_message_bytes: settings.max_message_bytes,
            failures: FailurePolicy {
                retry_min: settings.retry_min,
                retry_max: settings.retry_max,
                max_attempts: settings.max_attempts,
                discard_unroutable: settings.discard_unroutable.clone(),
                delete: settings.retention.is_zero(),
            },
            notices: Notices::default(),
        };
        Self {
            policy,
            session: None,
            link: None,
            store_probe: health.probe("postgresql", None),
            broker_probe: health.probe("rabbitmq", None),
            progress: health.probe("relay", Some(SILENCE_LIMIT)),
            context,
        }
    }

    /// Publishes until shutdown.
    ///
    /// # Errors
    ///
    /// When a server refuses the configuration before it has accepted it once.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let shutdown = self.context.shutdown.clone();
        let settings = &self.context.settings;
        let mut reconnect = Backoff::reconnect(settings.reconnect_max);
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
                        Step::BrokerBlocked => BLOCKED_PAUSE,
                    };
                    pause
                }
                Err(error) => {
                    self.disconnect(error)?;
                    reconnect.failed()
                }
            };
            if !wait.is_zero() {
                let hint = self.context.hint.arrived();
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep(wait) => {}
                    () = hint, if idle => pause = poll_min,
                }
            }
        }
        self.close().await;
        Ok(())
    }

    async fn step(&mut self) -> Result<Step, Error> {
        // The broker first: while it is unreachable, there is no use in connecting to PostgreSQL.
        if self.link.is_none() {
            self.link = Some(Link::connect(&self.context).await?);
        }
        if self.session.is_none() {
            self.session = Some(self.connect_store().await?);
        }
        let (Some(link), Some(session)) = (&mut self.link, &mut self.session) else {
            return Ok(Step::Passed(Pass::Idle));
        };
        if !link.connection.is_connected() {
            return Err(broker::Error::Lost.into());
        }
        if link.connection.is_blocked() {
            self.broker_probe.failing("RabbitMQ takes no messages: it is short of memory or disk");
            return Ok(Step::BrokerBlocked);
        }
        if link.failed {
            link.connection.close().await;
            return Err(broker::Error::Lost.into());
        }
        let Context { settings, lane_share, hint, metrics, .. } = &*self.context;
        let mut passed = pass(session, link, &mut self.policy, lane_share.lanes(), metrics).await?;
        if passed == Pass::Idle && hint.is_wanted(settings.poll_max) {
            session.request_hint().await?;
            // An append before the request sends no hint.
            passed = pass(session, link, &mut self.policy, lane_share.lanes(), metrics).await?;
        }
        self.store_probe.ok();
        self.broker_probe.ok_with(self.policy.pace.is_slow().then(|| {
            let rate = metrics.confirms.rate();
            format!("slow: the broker confirms {rate:.1} events/s")
        }));
        self.progress.ok();
        Ok(Step::Passed(passed))
    }

    async fn connect_store(&self) -> Result<Session, event_store::Error> {
        let mut session = Session::connect(&self.context.workers_store).await?;
        session.require_complete().await?;
        self.context.store_login.accepted();
        Ok(session)
    }

    /// Drops the connection that failed, so that the next step connects again.
    ///
    /// # Errors
    ///
    /// When the server has refused the configuration and never accepted it: then the relay ends.
    fn disconnect(&mut self, error: Error) -> Result<(), Failure> {
        let metrics = &self.context.metrics;
        match error {
            Error::Store(error) => {
                self.session = None;
                metrics.lost("postgresql");
                if error.is_configuration() && !self.context.store_login.was_accepted() {
                    return Err(Failure::new(Exit::Login, error));
                }
                self.store_probe.failing(&chain(&error));
                if self.link.is_some() {
                    self.broker_probe.ok();
                }
            }
            Error::Broker(error) => {
                // Releasing the claim may have failed half-way.
                self.session = None;
                self.link = self.link.take().filter(|link| link.connection.is_blocked());
                if let Some(link) = &mut self.link {
                    link.failed = true;
                }
                metrics.lost("rabbitmq");
                if error.is_configuration() && !self.context.broker_login.was_accepted() {
                    let refused = matches!(error, broker::Error::Login { .. });
                    let exit = if refused { Exit::Login } else { Exit::Configuration };
                    return Err(Failure::new(exit, error));
                }
                self.broker_probe.failing(&chain(&error));
            }
        }
        Ok(())
    }

    async fn close(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
        if let Some(link) = self.link {
            link.connection.close().await;
        }
    }
}
