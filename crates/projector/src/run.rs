//! Assembling the daemon.

use std::sync::Arc;

use daemon::{Endpoint, Exit, Failure, Health, Tasks};
use prometheus_client::registry::Registry;
use uuid::Uuid;

use crate::Settings;
use crate::apply::ReadModel;
use crate::context::Context;
use crate::metrics::Metrics;
use crate::projection::{Fault, Projection, load_all};
use crate::rebuild::tend;
use crate::supervise::supervise;
use crate::sweep::sweep;
use crate::wait::route;
use crate::{mysql, trouble::Trouble};

/// Starts the projector's tasks.
///
/// # Errors
///
/// When a projection has a mistake, a URL cannot be used, or the HTTP address is taken. Servers need
/// not be there yet.
pub async fn run(settings: Settings, tasks: &mut Tasks) -> Result<(), Failure> {
    let projections = load(&settings)?;
    let mut registry = Registry::default();
    let health = Health::default();
    let context = Arc::new(Context {
        mysql: mysql_options(&settings)?,
        store: store_options(&settings)?,
        broker: broker_options(&settings)?,
        metrics: Metrics::register(&mut registry),
        shutdown: tasks.shutdown(),
        instance: Uuid::new_v4(),
        settings,
    });
    let models: Vec<_> =
        projections.into_iter().map(|projection| Arc::new(ReadModel::new(projection))).collect();
    for model in &models {
        let task = supervise(Arc::clone(&context), Arc::clone(model), health.clone());
        tasks.spawn(format!("projection {}", model.name()), task);
    }
    let count = models.len();
    let routes = route(&context, &models);
    tasks.spawn("sweeper", sweep(Arc::clone(&context), models.clone(), health.clone()));
    tasks.spawn("rebuilds", tend(Arc::clone(&context), models));
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

/// Reads the projections.
pub(crate) fn load(settings: &Settings) -> Result<Vec<Projection>, Failure> {
    load_all(&settings.projections_dir, &settings.projections, &settings.code)
        .map_err(|faults| told(&faults))
}

/// All mistakes in one message.
pub(crate) fn told(faults: &[Fault]) -> Failure {
    let lines: Vec<_> = faults.iter().map(|fault| format!("  {fault}")).collect();
    let count = match faults.len() {
        1 => "1 mistake".to_owned(),
        several => format!("{several} mistakes"),
    };
    Failure::new(Exit::Data, anyhow::anyhow!("{count} in the projections:\n{}", lines.join("\n")))
}

pub(crate) fn mysql_options(settings: &Settings) -> Result<mysql::Options, Failure> {
    Ok(mysql::Options::parse(&settings.mysql_url).map_err(Trouble::from)?)
}

pub(crate) fn broker_options(settings: &Settings) -> Result<broker::Options, Failure> {
    Ok(broker::Options::parse(&settings.rabbitmq_url, "projector").map_err(Trouble::from)?)
}

pub(crate) fn store_options(settings: &Settings) -> Result<event_store::Options, Failure> {
    let options =
        event_store::Options::parse(&settings.postgres_url, "projector").map_err(Trouble::from)?;
    Ok(options.statement_limit(settings.statement_timeout))
}

/// Host and process, for people.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", name.trim(), std::process::id())
}
