//! Assembling the daemon.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use daemon::{Endpoint, Exit, Failure, Health, Tasks};
use prometheus_client::registry::Registry;
use secrecy::ExposeSecret;

use crate::Settings;
use crate::hint::{self, Hint};
use crate::metrics::Metrics;
use crate::retention::delete_old_rows;
use crate::survey::{Survey, survey};
use crate::worker::{Shared, Worker};

/// Workers count each other by it.
const WORKERS_NAME: &str = "outbox-relay worker";

/// Starts the relay's tasks.
///
/// # Errors
///
/// When a URL cannot be used, or the HTTP address is taken. Servers need not be there yet.
pub async fn run(settings: Settings, tasks: &mut Tasks) -> Result<(), Failure> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let health = Health::default();
    let shared = Arc::new(Shared {
        store: store_options(&settings, "outbox-relay")?,
        workers_store: store_options(&settings, WORKERS_NAME)?,
        workers_name: WORKERS_NAME,
        survey: Survey::new(settings.lanes_per_claim),
        hint: Hint::default(),
        broker: broker::Options::parse(&settings.rabbitmq_url, "outbox-relay")
            .map_err(|error| Failure::new(Exit::Configuration, error))?,
        metrics,
        shutdown: tasks.shutdown(),
        store_seen: AtomicBool::new(false),
        broker_seen: AtomicBool::new(false),
        settings,
    });
    // All that can fail comes before the first task.
    let listen_options = listen_options(&shared.settings)?;
    let probes = (health.probe("outbox survey", None), health.probe("outbox retention", None));
    let workers: Vec<_> =
        (0..shared.settings.workers).map(|_| Worker::new(Arc::clone(&shared), &health)).collect();
    let endpoint = Endpoint::bind(shared.settings.http_listen, health, registry).await?;
    let listen = endpoint.address()?;
    for (number, worker) in (1..).zip(workers) {
        tasks.spawn(format!("worker {number}"), worker.run());
    }
    tasks.spawn("survey", survey(Arc::clone(&shared), probes.0));
    tasks.spawn("retention", delete_old_rows(Arc::clone(&shared), probes.1));
    if shared.settings.notify {
        tasks.spawn("hints", hint::listen(Arc::clone(&shared), listen_options));
    }
    tasks.spawn("http", endpoint.serve(tasks.shutdown()));
    tracing::info!(
        postgresql = shared.store.address(),
        rabbitmq = shared.broker.address(),
        exchange = shared.settings.exchange,
        workers = shared.settings.workers,
        http = %listen,
        "outbox-relay {} started",
        env!("CARGO_PKG_VERSION"),
    );
    Ok(())
}

/// How the relay connects to PostgreSQL.
pub(crate) fn store_options(
    settings: &Settings,
    application_name: &str,
) -> Result<event_store::Options, Failure> {
    let options = event_store::Options::parse(&settings.postgres_url, application_name)
        .map_err(|error| Failure::new(Exit::Configuration, error))?;
    Ok(options.statement_limit(settings.statement_timeout).idle_limit(settings.claim_timeout))
}

/// How the relay listens: past a pooler, if there is one.
fn listen_options(settings: &Settings) -> Result<event_store::Options, Failure> {
    let url = if settings.listen_url.expose_secret().is_empty() {
        &settings.postgres_url
    } else {
        &settings.listen_url
    };
    event_store::Options::parse(url, "outbox-relay listener")
        .map_err(|error| Failure::new(Exit::Configuration, error))
}
