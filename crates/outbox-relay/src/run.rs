//! Assembling the daemon.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use daemon::{CancellationToken, Endpoint, Exit, Failure, Health, Tasks};
use event_store::Session;
use prometheus_client::registry::Registry;
use tokio::time::sleep;

use crate::Settings;
use crate::metrics::Metrics;
use crate::worker::{Shared, Worker};

/// How often the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

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
        store: store_options(&settings)?,
        broker: broker::Options::parse(&settings.rabbitmq_url, "outbox-relay")
            .map_err(|error| Failure::new(Exit::Configuration, error))?,
        metrics: metrics.clone(),
        shutdown: tasks.shutdown(),
        store_seen: AtomicBool::new(false),
        broker_seen: AtomicBool::new(false),
        settings,
    });
    for number in 1..=shared.settings.workers {
        let worker = Worker::new(Arc::clone(&shared), &health);
        tasks.spawn(format!("worker {number}"), worker.run());
    }
    tasks.spawn("backlog", sample(shared.store.clone(), metrics, tasks.shutdown()));
    let endpoint = Endpoint::bind(shared.settings.http_listen, health, registry).await?;
    let listen = endpoint.address()?;
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
pub(crate) fn store_options(settings: &Settings) -> Result<event_store::Options, Failure> {
    let options = event_store::Options::parse(&settings.postgres_url, "outbox-relay")
        .map_err(|error| Failure::new(Exit::Configuration, error))?;
    Ok(options.statement_limit(settings.statement_timeout).idle_limit(settings.claim_timeout))
}

/// Keeps the gauges of the backlog fresh. The workers report a lost server, so this does not.
async fn sample(
    options: event_store::Options,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let mut session: Option<Session> = None;
    while !shutdown.is_cancelled() {
        session = sample_once(session, &options, &metrics).await;
        shutdown.run_until_cancelled(sleep(SAMPLE_INTERVAL)).await;
    }
    Ok(())
}

async fn sample_once(
    session: Option<Session>,
    options: &event_store::Options,
    metrics: &Metrics,
) -> Option<Session> {
    let mut session = match session {
        Some(session) => session,
        None => Session::connect(options).await.ok()?,
    };
    let backlog = session.backlog().await.ok()?;
    metrics.pending_events.set(backlog.pending);
    metrics.held_streams.set(backlog.held_streams);
    metrics.oldest_pending_age_seconds.set(backlog.oldest_age_seconds);
    Some(session)
}
