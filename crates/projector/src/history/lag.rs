//! Measures the lag of a read model: the events that are published and not applied.

use chrono::Utc;
use domain_events::{Position, StreamId, StreamVersion};
use read_model::{ReadModel, Session};

use crate::error::Error;

/// The number of positions that are compared at once.
const WINDOW: i64 = 50_000;
/// The number of streams that are compared at once.
const STREAMS: usize = 1_000;

/// A stream of which a read model has applied fewer events than the event store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaggingStream {
    /// The stream.
    pub(crate) stream_id: StreamId,
    /// The version of the last applied event; 0 for none.
    pub(crate) applied: i64,
    /// The version of its last event in the compared range.
    pub(crate) stored: StreamVersion,
    /// Whether the stream is parked.
    pub(crate) is_parked: bool,
}

impl LaggingStream {
    /// The number of events that are not applied.
    fn events(&self) -> i64 {
        self.stored.get() - self.applied
    }
}

/// The position up to which every event is published, at most `decided`.
pub(crate) async fn published(
    store: &mut event_store::Session,
    decided: Position,
) -> Result<Position, Error> {
    let pending = store.lowest_pending_position().await?;
    let before = pending.and_then(|position| Position::new(position.get() - 1).ok());
    Ok(before.map_or(decided, |before| before.min(decided)))
}

/// Returns the streams with events in `after < position <= until` that the read model has not applied.
pub(crate) async fn lagging_streams(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    (mut after, until): (Position, Position),
) -> Result<Vec<LaggingStream>, Error> {
    let mut found = Vec::new();
    loop {
        after = store.skip_gap(after, until).await?;
        if after >= until {
            break;
        }
        let end = Position::new(after.get() + WINDOW).map_or(until, |end| end.min(until));
        let heads = store.stream_heads(after, end, &model.projection.categories).await?;
        for page in heads.chunks(STREAMS) {
            let streams: Vec<&StreamId> = page.iter().map(|head| &head.stream_id).collect();
            let known = session.heads(&model.ledger, &streams).await?;
            for head in page {
                let known = known.get(&head.stream_id).copied().unwrap_or_default();
                let applied = known.last.map_or(0, |last| last.version.get());
                if applied < head.version.get() {
                    found.push(LaggingStream {
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

/// The lag of a read model, without parked streams.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Lag {
    /// The number of events that are not applied.
    pub(crate) events: i64,
    /// The age of the oldest of them, in seconds.
    pub(crate) seconds: f64,
}

impl Lag {
    /// The lag of these streams together.
    pub(crate) async fn of(
        store: &mut event_store::Session,
        streams: impl Iterator<Item = &LaggingStream> + Clone,
    ) -> Result<Self, Error> {
        let streams = streams.filter(|stream| !stream.is_parked);
        let events = streams.clone().map(LaggingStream::events).sum();
        let first: Vec<_> = streams.map(|stream| (&stream.stream_id, stream.applied + 1)).collect();
        let mut oldest = None;
        for page in first.chunks(STREAMS) {
            oldest = [oldest, store.oldest(page).await?].into_iter().flatten().min();
        }
        let seconds = oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0));
        Ok(Self { events, seconds })
    }
}

/// Measures the current lag of a read model, from its checkpoint on.
pub(crate) async fn lag(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
) -> Result<Lag, Error> {
    let checkpoint = session.checkpoint(&model.ledger).await?;
    let after = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
    let end = store.take_fence().await?.limit();
    let until = published(store, end).await?;
    let lagging = lagging_streams(session, store, model, (after, until)).await?;
    Lag::of(store, lagging.iter()).await
}
