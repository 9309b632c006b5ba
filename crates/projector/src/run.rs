//! Assembles the daemon.

use std::sync::Arc;

use daemon::{Endpoint, Failure, Health, Tasks};
use prometheus_client::registry::Registry;
use read_model::ReadModel;
use uuid::Uuid;

use crate::Settings;
use crate::commands::{wait_endpoint, watch};
use crate::consume::{Batches, supervise};
use crate::context::Context;
use crate::heal::{reconcile_hourly, sweep};
use crate::metrics::Metrics;
use crate::rebuild::maintain;
use crate::survey::{Surveyed, survey};

/// Starts the projector's tasks. They wait for servers that are down.
///
/// # Errors
///
/// When a projection has a mistake, a URL is invalid, or the HTTP address is taken.
pub async fn run(settings: Settings, tasks: &mut Tasks) -> Result<(), Failure> {
    let definitions = settings.load(&settings.projections)?;
    let mut registry = Registry::default();
    let health = Health::default();
    let context = Arc::new(Context {
        mysql: settings.mysql()?,
        store: settings.store()?,
        broker: settings.broker()?,
        metrics: Metrics::register(&mut registry),
        shutdown: tasks.shutdown(),
        instance: Uuid::new_v4(),
        settings,
    });
    let models: Vec<_> = definitions.into_iter().map(|it| Arc::new(ReadModel::new(it))).collect();
    let mut surveyed: Vec<Surveyed> = Vec::new();
    for model in &models {
        let component = format!("projection {}", model.name());
        // On the component of the supervisor: it fails without interruption while consumers come and go.
        let batches = Arc::new(Batches::new(health.probe(&component, None)));
        surveyed.push((Arc::clone(model), Arc::clone(&batches)));
        let task = supervise(Arc::clone(&context), Arc::clone(model), batches, health.clone());
        tasks.spawn(component, task);
    }
    let count = models.len();
    let (routes, requests) = wait_endpoint(&models);
    tasks.spawn("waiting requests", watch(Arc::clone(&context), health.clone(), requests));
    tasks.spawn("sweeper", sweep(Arc::clone(&context), models.clone(), health.clone()));
    tasks.spawn("survey", survey(Arc::clone(&context), surveyed, health.clone()));
    tasks.spawn("reconciliation", reconcile_hourly(Arc::clone(&context), models.clone()));
    tasks.spawn("rebuilds", maintain(Arc::clone(&context), models));
    let endpoint = Endpoint::bind(context.settings.http_listen, health, registry).await?;
    let endpoint = endpoint.with(routes);
    let listen = endpoint.address()?;
    tasks.spawn("http", endpoint.serve(tasks.shutdown()));
    tracing::info!(
        postgresql = context.store.address(),
        rabbitmq = context.broker.address(),
        mysql = context.mysql.address(),
        projections = count,
        http = %listen,
        "projector {} started",
        env!("CARGO_PKG_VERSION"),
    );
    Ok(())
}
