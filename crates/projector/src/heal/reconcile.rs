//! Compares how many events were appended, published and applied.

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
use crate::history::lagging_streams;

/// How often a daemon reconciles each projection. Younger events are not counted.
const INTERVAL: Duration = Duration::from_mins(5);
/// How far back a daemon reconciles.
const SPAN: Duration = Duration::from_hours(1);
/// How often to check whether a projection is due.
const POLL: Duration = Duration::from_secs(2);
/// The number of streams in one query.
const STREAMS: usize = 1_000;
/// The most missing events in a list.
const EXAMPLES: usize = 100;

/// The events of one category and one span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    pub(crate) category: String,
    /// The start of the span.
    pub(crate) from: DateTime<Utc>,
    /// Events in the event store.
    pub(crate) appended: i64,
    /// Appended events whose outbox row is marked as published or deleted.
    pub(crate) published: i64,
    /// Appended events that are applied.
    pub(crate) applied: i64,
    /// Events that are not applied because their stream is parked.
    pub(crate) parked: i64,
    /// Published events that are neither applied nor parked.
    pub(crate) missing: i64,
}

/// The result for one projection.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Reconciliation {
    pub(crate) projection: String,
    pub(crate) lines: Vec<Line>,
    /// The first missing events.
    pub(crate) missing: Vec<Lacking>,
}

impl Reconciliation {
    /// The number of missing events.
    pub(crate) fn missing(&self) -> i64 {
        self.lines.iter().map(|line| line.missing).sum()
    }
}

/// Counts the events that were appended in a span of time, and those of them that were published and applied.
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
    for page in lagging_streams(session, store, model, (after, until)).await?.chunks(STREAMS) {
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

/// Counts the missing events of the last hour for each projection, until shutdown. A lock chooses one instance
/// to do it.
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
                    // Other tasks report the failure of the server in `/readyz`.
                    tracing::debug!(
                        projection = name,
                        reason = chain(&error),
                        "the projection was not reconciled"
                    );
                    session = None;
                }
            }
        }
        // An idle session would end, and release the lock.
        if let Some(idle) = &mut session
            && idle.ping().await.is_err()
        {
            session = None;
        }
    }
    Ok(())
}

/// Keeps the session, and with it the lock: the same instance reconciles again next time.
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
        // Events that are younger than the interval may still be on their way.
        let span = (now - SPAN, now - INTERVAL);
        let found = reconcile(&mut session, &mut store, model, span, SPAN).await?;
        store.close().await;
        context.metrics.missing(model.name(), found.missing());
    }
    *kept = Some(session);
    Ok(())
}
