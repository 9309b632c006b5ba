//! Assembles the daemon and starts its tasks.

use std::sync::Arc;

use daemon::{Endpoint, Failure, Health, Tasks};
use prometheus_client::registry::Registry;

use crate::Settings;
use crate::context::Context;
use crate::listener::listen;
use crate::metrics::Metrics;
use crate::retention::delete_old_rows;
use crate::survey::survey;
use crate::worker::Worker;

/// Starts the relay's tasks. The servers need not be reachable yet.
///
/// # Errors
///
/// When a URL cannot be used, or the HTTP address is taken.
pub async fn run(settings: Settings, tasks: &mut Tasks) -> Result<(), Failure> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let health = Health::default();
    let context = Arc::new(Context::new(settings, metrics, tasks.shutdown())?);
    // Everything that can fail happens before the first task starts.
    let listen_options = context.settings.listen_options()?;
    let survey_probe = health.probe("outbox survey", None);
    let lanes_probe = health.probe("outbox lanes", None);
    let retention_probe = health.probe("outbox retention", None);
    let workers: Vec<_> =
        (0..context.settings.workers).map(|_| Worker::new(Arc::clone(&context), &health)).collect();
    let endpoint = Endpoint::bind(context.settings.http_listen, health.clone(), registry).await?;
    let http = endpoint.address()?;
    for (number, worker) in (1..).zip(workers) {
        tasks.spawn(format!("worker {number}"), worker.run());
    }
    tasks.spawn("survey", survey(Arc::clone(&context), health, survey_probe, lanes_probe));
    tasks.spawn("retention", delete_old_rows(Arc::clone(&context), retention_probe));
    if context.settings.notify {
        tasks.spawn("listener", listen(Arc::clone(&context), listen_options));
    }
    tasks.spawn("http", endpoint.serve(tasks.shutdown()));
    tracing::info!(
        postgresql = context.store.address(),
        rabbitmq = context.broker.address(),
        exchange = context.settings.exchange,
        workers = context.settings.workers,
        %http,
        "outbox-relay {} started",
        env!("CARGO_PKG_VERSION"),
    );
    Ok(())
}
