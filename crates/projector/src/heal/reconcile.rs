//! Compares how many events were appended, published and applied.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use daemon::{Failure, chain};
use domain_events::StreamId;
use event_store::{Bucket, Lacking, Positions, Reach};
use read_model::{Lock, ReadModel, Session};
use serde::Serialize;
use tokio::time::sleep;

use crate::context::Context;
use crate::error::Error;
use crate::history::{LaggingStream, lagging_streams};

/// How often a daemon reconciles each projection. Younger events are not counted.
const INTERVAL: Duration = Duration::from_mins(5);
/// How far back a daemon reconciles.
const SPAN: Duration = Duration::from_hours(1);
/// How often to check whether a projection is due.
const POLL: Duration = Duration::from_secs(2);
/// The number of streams in one query.
const STREAMS: usize = 1_000;
/// The number of events in one query.
const EVENTS: i64 = 10_000;
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
/// Calls `progress` now and then with the position that it has reached.
///
/// No statement reads more than a page. So what is published is read before what is applied: an event that is
/// published meanwhile is not missing.
pub(crate) async fn reconcile(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    (since, before): (DateTime<Utc>, DateTime<Utc>),
    bucket: Duration,
    progress: impl FnMut(i64),
) -> Result<Reconciliation, Error> {
    let after = store.position_before(since).await?;
    let until = store.take_fence().await?.limit();
    let reach = Reach { after, until, since, before, bucket };
    let unpublished = store.unpublished().await?;
    let categories = &model.projection.categories;
    let mut lines = BTreeMap::new();
    for Bucket { category, from, appended, pending } in
        store.count_by_bucket(&reach, categories, &unpublished, progress).await?
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
    let lagging = lagging_streams(session, store, model, (after, until)).await?;
    let parked: HashSet<&str> =
        lagging.iter().filter(|one| one.is_parked).map(|one| one.stream_id.as_str()).collect();
    let mut lacking: BTreeMap<_, Positions> = BTreeMap::new();
    let mut missing = Vec::new();
    for page in ranges(&lagging) {
        for event in store.events_beyond(&reach, &page).await? {
            let key = (event.category.clone(), event.bucket);
            let Some(line) = lines.get_mut(&key) else { continue };
            line.applied -= 1;
            if parked.contains(&*event.stream_id) {
                line.parked += 1;
            } else if !unpublished.contains(event.position) {
                lacking.entry(key).or_default().insert(event.position);
                if missing.len() < EXAMPLES {
                    missing.push(event);
                }
            }
        }
    }
    if !lacking.is_empty() {
        // Events that were committed since the first look are not missing either.
        let unpublished = store.unpublished().await?;
        for (key, lacking) in &lacking {
            let published = lacking.iter().filter(|position| !unpublished.contains(*position));
            if let Some(line) = lines.get_mut(key) {
                line.missing = i64::try_from(published.count()).unwrap_or(i64::MAX);
            }
        }
        missing.retain(|event| !unpublished.contains(event.position));
    }
    let lines = lines.into_values().collect();
    Ok(Reconciliation { projection: model.name().to_owned(), lines, missing })
}

/// The events of some streams that are not applied, divided into queries.
fn ranges(lagging: &[LaggingStream]) -> Vec<Vec<(&StreamId, i64, i64)>> {
    let (mut pages, mut page, mut events) = (Vec::new(), Vec::new(), 0);
    for stream in lagging {
        let mut above = stream.applied;
        while above < stream.stored.get() {
            let up_to = stream.stored.get().min(above + EVENTS - events);
            page.push((&stream.stream_id, above, up_to));
            events += up_to - above;
            above = up_to;
            if events >= EVENTS || page.len() >= STREAMS {
                pages.push(std::mem::take(&mut page));
                events = 0;
            }
        }
    }
    if !page.is_empty() {
        pages.push(page);
    }
    pages
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
        let found = reconcile(&mut session, &mut store, model, span, SPAN, |_| {}).await?;
        store.close().await;
        context.metrics.missing(model.name(), found.missing());
    }
    *kept = Some(session);
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain_events::StreamVersion;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every unapplied event is in one query, and no query is too large.
        #[test]
        fn queries_are_small_and_leave_nothing_out(
            streams in proptest::collection::vec((0..50_i64, 1..30_000_i64), 0..20),
        ) {
            let lagging: Vec<_> = streams.iter().enumerate().map(|(number, (applied, more))| LaggingStream {
                stream_id: StreamId::new(format!("order-{number}")).unwrap(),
                applied: *applied,
                stored: StreamVersion::new(applied + more).unwrap(),
                is_parked: false,
            }).collect();
            let pages = ranges(&lagging);
            let mut reached: HashMap<&StreamId, i64> =
                lagging.iter().map(|one| (&one.stream_id, one.applied)).collect();
            for page in &pages {
                prop_assert!(page.len() <= STREAMS);
                prop_assert!(page.iter().map(|(_, above, up_to)| up_to - above).sum::<i64>() <= EVENTS);
                for (stream_id, above, up_to) in page {
                    prop_assert_eq!(reached.insert(stream_id, *up_to), Some(*above));
                    prop_assert!(above < up_to);
                }
            }
            for one in &lagging {
                prop_assert_eq!(reached[&one.stream_id], one.stored.get());
            }
        }
    }
}
