//! Whether everything that was appended was published, and applied.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use event_store::{Bucket, Lacking, Reach};
use serde::Serialize;

use crate::apply::ReadModel;
use crate::behind::behind;
use crate::mysql::Session;
use crate::trouble::Trouble;

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
pub(crate) struct Audit {
    pub(crate) projection: String,
    pub(crate) lines: Vec<Line>,
    /// Some of the events that are missing.
    pub(crate) missing: Vec<Lacking>,
}

impl Audit {
    /// How many events are missing.
    pub(crate) fn missing(&self) -> i64 {
        self.lines.iter().map(|line| line.missing).sum()
    }
}

/// Compares what was appended in a span of time with what a projection has applied.
pub(crate) async fn audit(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    (since, before): (DateTime<Utc>, DateTime<Utc>),
    bucket: Duration,
) -> Result<Audit, Trouble> {
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
    Ok(Audit { projection: model.name().to_owned(), lines, missing })
}
