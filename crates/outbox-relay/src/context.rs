//! What all tasks of a relay share. It starts nothing and decides nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use daemon::{CancellationToken, Failure};

use crate::Settings;
use crate::hint::Hint;
use crate::lane_share::LaneShare;
use crate::metrics::Metrics;

/// The application name of every worker in PostgreSQL: relays count each other's workers by it.
const WORKERS_NAME: &str = "outbox-relay worker";

/// Shared by the tasks of one relay.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    /// Connection options of the background tasks.
    pub(crate) store: event_store::Options,
    /// Connection options of the survey, whose session stands for the relay in `outbox-relay status`.
    pub(crate) survey_store: event_store::Options,
    /// Connection options of the workers.
    pub(crate) workers_store: event_store::Options,
    /// The application name in `workers_store`.
    pub(crate) workers_name: &'static str,
    pub(crate) broker: broker::Options,
    pub(crate) metrics: Metrics,
    pub(crate) lane_share: LaneShare,
    pub(crate) hint: Hint,
    pub(crate) shutdown: CancellationToken,
    pub(crate) store_login: Login,
    pub(crate) broker_login: Login,
}

impl Context {
    /// # Errors
    ///
    /// When a URL cannot be used.
    pub(crate) fn new(
        settings: Settings,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Result<Self, Failure> {
        Ok(Self {
            store: settings.store_options("outbox-relay")?,
            survey_store: settings.store_options(event_store::Relay::NAME)?,
            workers_store: settings.store_options(WORKERS_NAME)?,
            workers_name: WORKERS_NAME,
            broker: settings.broker_options()?,
            metrics,
            lane_share: LaneShare::new(settings.lanes_per_claim),
            hint: Hint::default(),
            shutdown,
            store_login: Login::default(),
            broker_login: Login::default(),
            settings,
        })
    }
}

/// Whether a server has ever accepted our login.
///
/// A refused login ends the relay at its start, because the configuration must be wrong. Later the
/// same refusal may be temporary, for example while a server is restored.
#[derive(Default)]
pub(crate) struct Login(AtomicBool);

impl Login {
    pub(crate) fn accepted(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn was_accepted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
