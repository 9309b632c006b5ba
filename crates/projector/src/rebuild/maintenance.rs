//! The maintenance of rebuilds by projectors: continues interrupted ones, reports their progress, and drops
//! previous tables after `rebuild_retention`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use daemon::{Failure, Lasting, chain};
use read_model::{Databases, Job, JobState, ReadModel, Session};
use tokio::time::sleep;

use super::{Error, Rebuilder, Report};
use crate::context::{Context, host};

/// How often to check.
const INTERVAL: Duration = Duration::from_secs(2);

/// Maintains the rebuilds of all projections of this instance until shutdown.
pub(crate) async fn maintain(
    context: Arc<Context>,
    models: Vec<Arc<ReadModel>>,
) -> Result<(), Failure> {
    let mut maintenance = Maintenance { context: &context, session: None };
    let mut failing: HashMap<&str, Lasting> = HashMap::new();
    let stop = &context.shutdown;
    while stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        for model in &models {
            match stop.run_until_cancelled(Box::pin(maintenance.check(model))).await {
                None => return Ok(()),
                Some(Ok(())) => drop(failing.remove(model.name())),
                Some(Err(error)) => {
                    maintenance.session = None;
                    let (projection, reason) = (model.name(), chain(&error));
                    if error.is_transient() {
                        // Other tasks report the failure of the server in `/readyz`.
                        tracing::debug!(
                            projection,
                            reason,
                            "the state of the rebuild was not checked; it is tried again"
                        );
                    } else if failing.entry(projection).or_default().failed(&reason).is_some() {
                        tracing::error!(projection, reason, "the interrupted rebuild failed");
                    }
                }
            }
        }
    }
    Ok(())
}

struct Maintenance<'c> {
    context: &'c Context,
    session: Option<Session>,
}

impl Maintenance<'_> {
    async fn check(&mut self, model: &ReadModel) -> Result<(), Error> {
        let (context, name) = (self.context, model.name());
        let mut session = match self.session.take() {
            Some(session) => session.or_new(&context.mysql).await?,
            None => Session::connect(&context.mysql).await?,
        };
        let job = session.job(&model.ledger).await?;
        let database = session.database().await?;
        let unfinished = job.as_ref().filter(|job| job.state.is_unfinished());
        context.metrics.rebuild(name, unfinished.map(|job| &job.progress));
        self.session = Some(session);
        let Some(job) = job else { return Ok(()) };
        // Every projector has the files of a rollback: they are stored.
        let is_ours = job.definition_hash == model.projection.definition_hash
            || job.state == JobState::RollingBack;
        let (is_expired, is_open) =
            (is_expired(&job, context), is_ours && job.state.is_unfinished());
        if !is_expired && !is_open {
            return Ok(());
        }
        let rebuilder = self.rebuilder(model, &database);
        if is_expired {
            match rebuilder.drop_previous().await {
                // A rebuild or a comparison is running; try again at the next check.
                Err(Error::Locked { .. }) => {}
                dropped => {
                    dropped?;
                    tracing::info!(
                        projection = name,
                        "the previous tables were dropped: rebuild_retention is over"
                    );
                }
            }
        } else if rebuilder.resume().await? {
            tracing::info!(projection = name, "the interrupted rebuild is done");
        }
        Ok(())
    }

    fn rebuilder(&self, model: &ReadModel, database: &str) -> Rebuilder {
        let context = self.context;
        let metrics = Box::new(context.metrics.clone());
        Rebuilder {
            definition: model.definition(),
            mysql: context.mysql.clone(),
            store: context.store.clone(),
            databases: Databases::beside(database),
            report: Report::Log { projection: model.name().to_owned(), metrics },
            host: host(),
        }
    }
}

/// Whether the previous tables have been kept for `rebuild_retention`.
fn is_expired(job: &Job, context: &Context) -> bool {
    let age = (Utc::now() - job.changed_at).to_std().unwrap_or_default();
    let kept = context.settings.rebuild_retention;
    matches!(job.state, JobState::Done | JobState::RolledBack) && age > kept
}
