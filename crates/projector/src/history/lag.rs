//! How far a read model is behind: events that are published and not applied.

use chrono::Utc;
use domain_events::{Position, StreamId, StreamVersion};
use read_model::{ReadModel, Session};

use crate::error::Error;

/// Positions compared at once.
const WINDOW: i64 = 50_000;
/// Streams compared at once.
const STREAMS: usize = 1_000;

/// A stream of which a read model has applied fewer events than the event store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behind {
    /// The stream.
    pub(crate) stream_id: StreamId,
    /// The version of its last event that was applied; 0 for none.
    pub(crate) applied: i64,
    /// Its last event in the range that was compared.
    pub(crate) stored: StreamVersion,
    /// Whether it waits for a person.
    pub(crate) is_parked: bool,
}

impl Behind {
    /// How many events it lacks.
    fn events(&self) -> i64 {
        self.stored.get() - self.applied
    }
}

/// The last position up to which every event is published, as far as the order of events is decided.
pub(crate) async fn published(
    store: &mut event_store::Session,
    decided: Position,
) -> Result<Position, Error> {
    let pending = store.lowest_pending_position().await?;
    let before = pending.and_then(|position| Position::new(position.get() - 1).ok());
    Ok(before.map_or(decided, |before| before.min(decided)))
}

/// The streams with events in `after < position <= until` that a read model has not applied.
pub(crate) async fn behind(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    (mut after, until): (Position, Position),
) -> Result<Vec<Behind>, Error> {
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

/// How far a read model is behind, without its parked streams.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Lag {
    /// Events that are not applied.
    pub(crate) events: i64,
    /// The age of the oldest of them, in seconds.
    pub(crate) seconds: f64,
}

impl Lag {
    /// The lag that some streams make up.
    pub(crate) async fn of(
        store: &mut event_store::Session,
        behind: impl Iterator<Item = &Behind> + Clone,
    ) -> Result<Self, Error> {
        let behind = behind.filter(|stream| !stream.is_parked);
        let events = behind.clone().map(Behind::events).sum();
        let first: Vec<_> = behind.map(|stream| (&stream.stream_id, stream.applied + 1)).collect();
        let mut oldest = None;
        for page in first.chunks(STREAMS) {
            oldest = [oldest, store.oldest(page).await?].into_iter().flatten().min();
        }
        let seconds = oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0));
        Ok(Self { events, seconds })
    }
}

/// How far a read model is behind now, from its checkpoint on.
pub(crate) async fn lag(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
) -> Result<Lag, Error> {
    let checkpoint = session.checkpoint(&model.ledger).await?;
    let after = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
    let end = store.take_fence().await?.limit();
    let until = published(store, end).await?;
    let behind = behind(session, store, model, (after, until)).await?;
    Lag::of(store, behind.iter()).await
}
