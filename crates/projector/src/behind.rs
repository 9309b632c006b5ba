//! Streams of which a read model has applied fewer events than the event store has.

use chrono::Utc;
use domain_events::{Position, StreamId, StreamVersion};

use crate::apply::ReadModel;
use crate::mysql::Session;
use crate::trouble::Trouble;

/// Positions compared at once.
const WINDOW: i64 = 50_000;
/// Streams compared at once.
const STREAMS: usize = 1_000;

/// A stream that is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behind {
    /// The stream.
    pub(crate) stream_id: StreamId,
    /// Its last event that was applied, 0 for none.
    pub(crate) applied: i64,
    /// Its last event in the range that was looked at.
    pub(crate) stored: StreamVersion,
    /// Whether it waits for somebody to decide.
    pub(crate) is_parked: bool,
}

impl Behind {
    /// How many events it lacks.
    pub(crate) fn events(&self) -> i64 {
        self.stored.get() - self.applied
    }
}

/// The streams with events in `after < position <= until` that a read model has not applied.
pub(crate) async fn behind(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    (mut after, until): (Position, Position),
) -> Result<Vec<Behind>, Trouble> {
    let mut found = Vec::new();
    while after < until {
        let end = Position::new(after.get() + WINDOW).map_or(until, |end| end.min(until));
        let heads = store.stream_heads(after, end, &model.projection.categories).await?;
        for page in heads.chunks(STREAMS) {
            let streams: Vec<&StreamId> = page.iter().map(|head| &head.stream_id).collect();
            let known = session.heads(&model.ledger, &streams).await?;
            for head in page {
                let known = known.get(&head.stream_id).copied().unwrap_or_default();
                let applied = known.last.map_or(0, |last| last.version.get());
                if applied < head.version.get() {
                    found.push(Behind {
                        stream_id: head.stream_id.clone(),
                        applied,
                        stored: head.version,
                        is_parked: known.is_parked,
                    });
                }
            }
        }
        after = end;
    }
    // A stream can be in several windows.
    found.sort_unstable_by(|one, other| {
        (&one.stream_id, other.stored).cmp(&(&other.stream_id, one.stored))
    });
    found.dedup_by(|later, first| later.stream_id == first.stream_id);
    Ok(found)
}

/// How many events are stored and not applied, without those of parked streams, and the age of the
/// oldest of them in seconds.
pub(crate) async fn lag(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
) -> Result<(i64, f64), Trouble> {
    let checkpoint = session.checkpoint(&model.ledger).await?;
    let after = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
    let until = store.take_fence().await?.limit();
    let mut behind = behind(session, store, model, (after, until)).await?;
    behind.retain(|stream| !stream.is_parked);
    let events = behind.iter().map(Behind::events).sum();
    let mut oldest = None;
    for page in behind.chunks(STREAMS) {
        let first: Vec<_> =
            page.iter().map(|stream| (&stream.stream_id, stream.applied + 1)).collect();
        oldest = [oldest, store.oldest(&first).await?].into_iter().flatten().min();
    }
    let seconds = oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0));
    Ok((events, seconds))
}
