//! Whether every appended event was published and applied.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use daemon::{Failure, chain};
use event_store::{Bucket, Lacking, Reach};
use read_model::{Lock, ReadModel, Session};
use serde::Serialize;
use tokio::time::sleep;

use crate::context::Context;
use crate::error::Error;
use crate::history::behind;

/// How often a daemon reconciles each projection, how far back, and how often it looks whether it is time.
const INTERVAL: Duration = Duration::from_mins(5);
const SPAN: Duration = Duration::from_hours(1);
const POLL: Duration = Duration::from_secs(2);
/// Streams that are asked for at once.
const STREAMS: usize = 1_000;
/// Missing events that are listed.
const EXAMPLES: usize = 100;

/// Events of one category and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    pub(crate) category: String,
    /// From this time on.
    pub(crate) from: DateTime<Utc>,
    /// In the event store.
    pub(crate) appended: i64,
    /// Of these, not in the outbox any more, or marked there.
    pub(crate) published: i64,
    /// Of these, applied.
    pub(crate) applied: i64,
    /// Not applied, because their stream is parked.
    pub(crate) parked: i64,
    /// Published, and neither applied nor parked.
    pub(crate) missing: i64,
}

/// One projection.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Reconciliation {
    pub(crate) projection: String,
    pub(crate) lines: Vec<Line>,
    /// Some of the events that are missing.
    pub(crate) missing: Vec<Lacking>,
}

impl Reconciliation {
    /// How many events are missing.
    pub(crate) fn missing(&self) -> i64 {
        self.lines.iter().map(|line| line.missing).sum()
    }
}

/// Compares what was appended in a span of time with what a projection has applied.
pub(crate) async fn reconcile(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    (since, before): (DateTime<Utc>, DateTime<Utc>),
    bucket: Duration,
) -> Result<Reconciliation, Error> {
    let after = store.position_before(since).await?;
    let until = store.take_fence().await?.limit();
    let reach = Reach { after, until, since, before, bucket };
    let categories = &model.projection.categories;
    let mut lines = BTreeMap::new();
    for Bucket { category, from, appended, pending } in
        store.count_by_bucket(&reach, categories).await?
    {
        let published = appended - pending;
        let line = Line {
            category: category.clone(),
            from,
            appended,
            published,
            applied: appended,
            parked: 0,
            missing: 0,
        };
        lines.insert((category, from), line);
    }
    let mut missing = Vec::new();
    for page in behind(session, store, model, (after, until)).await?.chunks(STREAMS) {
        let streams: Vec<_> = page.iter().map(|one| (&one.stream_id, one.applied)).collect();
        let parked: HashSet<&str> =
            page.iter().filter(|one| one.is_parked).map(|one| one.stream_id.as_str()).collect();
        for event in store.events_beyond(&reach, &streams).await? {
            let Some(line) = lines.get_mut(&(event.category.clone(), event.bucket)) else {
                continue;
            };
            line.applied -= 1;
            if parked.contains(&*event.stream_id) {
                line.parked += 1;
            } else if !event.pending {
                line.missing += 1;
                if missing.len() < EXAMPLES {
                    missing.push(event);
                }
            }
        }
    }
    let lines = lines.into_values().collect();
    Ok(Reconciliation { projection: model.name().to_owned(), lines, missing })
}

/// Counts the missing events of the last hour of each projection, until shutdown. One instance of all does.
pub(crate) async fn reconcile_hourly(
    context: Arc<Context>,
    models: Vec<Arc<ReadModel>>,
) -> Result<(), Failure> {
    let stop = &context.shutdown;
    let mut session = None;
    let mut done: HashMap<String, Instant> = HashMap::new();
    while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
        for model in &models {
            let name = model.name();
            if done.get(name).is_some_and(|at| at.elapsed() <= INTERVAL) {
                continue;
            }
            done.insert(name.to_owned(), Instant::now());
            match stop.run_until_cancelled(count_missing(&context, &mut session, model)).await {
                None => return Ok(()),
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    // Each task that needs the servers reports it by itself.
                    tracing::debug!(projection = name, reason = chain(&error), "not reconciled");
                    session = None;
                }
            }
        }
    }
    Ok(())
}

/// The session keeps the lock, so that the same instance goes on with it.
async fn count_missing(
    context: &Context,
    kept: &mut Option<Session>,
    model: &ReadModel,
) -> Result<(), Error> {
    let mut session = match kept.take() {
        Some(session) => session.or_new(&context.mysql).await?,
        None => Session::connect(&context.mysql).await?,
    };
    let is_new =
        session.checkpoint(&model.ledger).await?.is_none_or(|it| it.replay_until.is_some());
    if !is_new && session.try_own(&model.ledger, Lock::Reconcile).await? {
        let mut store = event_store::Session::connect(&context.store).await?;
        let now = Utc::now();
        // Younger events may be on their way; and so may more, while the read model lags.
        let span = (now - SPAN, now - INTERVAL);
        let found = reconcile(&mut session, &mut store, model, span, SPAN).await?;
        store.close().await;
        context.metrics.missing(model.name(), found.missing());
    }
    *kept = Some(session);
    Ok(())
}
