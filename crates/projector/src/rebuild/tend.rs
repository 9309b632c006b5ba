//! What a projector does for rebuilds: it goes on with those that were interrupted, tells how far they
//! are, and drops old tables in time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use daemon::{Failure, chain};
use tokio::time::sleep;

use super::{Rebuilder, Report};
use crate::apply::ReadModel;
use crate::audit::audit;
use crate::context::Context;
use crate::mysql::{Databases, Job, JobState, Session};
use crate::run::host;
use crate::trouble::Trouble;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often to compare what was appended with what was applied, and how far back.
const AUDIT_INTERVAL: Duration = Duration::from_mins(5);
const AUDITED: Duration = Duration::from_hours(1);

/// Looks after the rebuilds of all projections of this instance until shutdown.
pub(crate) async fn tend(
    context: Arc<Context>,
    models: Vec<Arc<ReadModel>>,
) -> Result<(), Failure> {
    let mut attendant = Attendant { context: &context, session: None, audited: HashMap::new() };
    let stop = &context.shutdown;
    while stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        for model in &models {
            match stop.run_until_cancelled(Box::pin(attendant.look(model))).await {
                None => return Ok(()),
                Some(Ok(())) => {}
                Some(Err(trouble)) => {
                    attendant.session = None;
                    let (projection, reason) = (model.name(), chain(&trouble));
                    if trouble.is_passing() {
                        // Each task that needs the servers says so by itself.
                        tracing::debug!(projection, reason, "looking after a rebuild failed");
                    } else {
                        tracing::error!(projection, reason, "looking after a rebuild failed");
                    }
                }
            }
        }
    }
    Ok(())
}

struct Attendant<'c> {
    context: &'c Context,
    session: Option<Session>,
    /// When each projection was audited last.
    audited: HashMap<String, Instant>,
}

impl Attendant<'_> {
    async fn look(&mut self, model: &ReadModel) -> Result<(), Trouble> {
        let (context, name) = (self.context, model.name());
        let mut session = match self.session.take() {
            Some(session) => session.or_new(&context.mysql).await?,
            None => Session::connect(&context.mysql).await?,
        };
        let job = session.job(&model.ledger).await?;
        let database = session.database().await?;
        let unfinished = job.as_ref().filter(|job| job.state.is_unfinished());
        context.metrics.rebuild(name, unfinished.map(|job| &job.progress));
        if self.audited.get(name).is_none_or(|at| at.elapsed() > AUDIT_INTERVAL) {
            self.audited.insert(name.to_owned(), Instant::now());
            self.audit(&mut session, model).await?;
        }
        self.session = Some(session);
        let Some(job) = job else { return Ok(()) };
        let is_ours = job.definition_hash == model.projection.definition_hash;
        let (is_old, is_open) = (is_old(&job, context), is_ours && job.state.is_unfinished());
        if !is_old && !is_open {
            return Ok(());
        }
        let rebuilder = Rebuilder {
            projection: model.projection.clone(),
            mysql: context.mysql.clone(),
            store: context.store.clone(),
            databases: Databases::beside(&database),
            report: Report::Log {
                projection: name.to_owned(),
                metrics: Box::new(context.metrics.clone()),
            },
            host: host(),
        };
        if is_old {
            match rebuilder.drop_old().await {
                // Later.
                Err(Trouble::AnotherRebuild { .. }) => {}
                dropped => {
                    dropped?;
                    tracing::info!(
                        projection = name,
                        "the tables of before its rebuild are dropped"
                    );
                }
            }
        } else if rebuilder.resume().await? {
            tracing::info!(projection = name, "a rebuild that was interrupted is done");
        }
        Ok(())
    }

    /// Counts the events of the last hour that are missing; one instance of all does.
    async fn audit(&self, session: &mut Session, model: &ReadModel) -> Result<(), Trouble> {
        let is_new =
            session.checkpoint(&model.ledger).await?.is_none_or(|it| it.replay_until.is_some());
        if is_new || !session.try_own(&format!("{}.audit", model.name())).await? {
            return Ok(());
        }
        let mut store = event_store::Session::connect(&self.context.store).await?;
        let now = Utc::now();
        // What is younger may be on its way; and so may more, while the read model is behind.
        let span = (now - AUDITED, now - AUDIT_INTERVAL);
        let audit = audit(session, &mut store, model, span, AUDITED).await?;
        store.close().await;
        self.context.metrics.missing(model.name(), audit.missing());
        Ok(())
    }
}

/// Whether nobody will go back to the tables of before.
fn is_old(job: &Job, context: &Context) -> bool {
    let age = (Utc::now() - job.changed_at).to_std().unwrap_or_default();
    let kept = context.settings.rebuild_retention;
    matches!(job.state, JobState::Done | JobState::RolledBack) && age > kept
}
