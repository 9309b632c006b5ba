//! Measures the lag of read models: the events that are stored and not applied.
//!
//! Whether an event is published does not matter here: a read model lags also while no relay runs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::Utc;
use domain_events::{Category, Position, StreamId, StreamVersion};
use event_store::{Place, StreamHead};
use read_model::{ReadModel, Session};
use serde::Serialize;

use crate::error::Error;

/// The number of positions that are compared at once.
const WINDOW: i64 = 50_000;
/// The number of streams that are compared at once.
const STREAMS: usize = 1_000;
/// The number of events that are read at once to find the first one that is not applied.
const PLACES: u32 = 1_000;
/// The most windows of one measurement: 1,000,000 positions.
const WINDOWS_MAX: usize = 20;
/// The longest time of one measurement, apart from the first window of each read model.
const PATIENCE: Duration = Duration::from_secs(3);

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
        let heads: Vec<&StreamHead> = heads.iter().collect();
        found.extend(compare(session, model, &heads, None).await?.0);
        after = end;
    }
    // A stream can be in several windows.
    found.sort_unstable_by(|one, other| {
        (&one.stream_id, other.stored).cmp(&(&other.stream_id, one.stored))
    });
    found.dedup_by(|later, first| later.stream_id == first.stream_id);
    Ok(found)
}

/// Compares the streams of one window with the bookkeeping. Returns those that lag, and whether all were
/// compared: after the deadline, one page is.
async fn compare(
    session: &mut Session,
    model: &ReadModel,
    heads: &[&StreamHead],
    deadline: Option<Instant>,
) -> Result<(Vec<LaggingStream>, bool), Error> {
    let mut found = Vec::new();
    for (number, page) in heads.chunks(STREAMS).enumerate() {
        if number > 0 && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok((found, false));
        }
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
    Ok((found, true))
}

/// The lag of a read model, without parked streams.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Lag {
    /// The number of events that are not applied.
    #[serde(rename = "lag_events")]
    pub(crate) events: i64,
    /// The age of the oldest of them, in seconds.
    #[serde(rename = "lag_seconds")]
    pub(crate) seconds: f64,
    /// Whether there may be more events: not all positions were compared.
    #[serde(rename = "lag_is_a_minimum")]
    pub(crate) is_minimum: bool,
}

impl Lag {
    /// The lag of these streams together.
    pub(crate) async fn of(
        store: &mut event_store::Session,
        streams: impl Iterator<Item = &LaggingStream> + Clone,
    ) -> Result<Self, Error> {
        let streams = streams.filter(|stream| !stream.is_parked);
        let events = streams.clone().map(LaggingStream::events).sum();
        let seconds = age(store, streams).await?;
        Ok(Self { events, seconds, is_minimum: false })
    }
}

/// The age of the oldest event that streams lack, in seconds.
async fn age(
    store: &mut event_store::Session,
    streams: impl Iterator<Item = &LaggingStream>,
) -> Result<f64, Error> {
    let first: Vec<_> = streams.map(|stream| (&stream.stream_id, stream.applied + 1)).collect();
    let mut oldest = None;
    for page in first.chunks(STREAMS) {
        oldest = [oldest, store.oldest(page).await?].into_iter().flatten().min();
    }
    Ok(oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0)))
}

/// The age of the first event in `after < position <= until` that streams lack, in seconds. For a few streams, it
/// looks for their events; for many, one of the first events is theirs.
async fn first_age(
    store: &mut event_store::Session,
    streams: &[LaggingStream],
    (mut after, until): (Position, Position),
) -> Result<f64, Error> {
    if streams.len() <= STREAMS {
        return age(store, streams.iter()).await;
    }
    let applied: HashMap<&StreamId, i64> =
        streams.iter().map(|stream| (&stream.stream_id, stream.applied)).collect();
    loop {
        let places = store.places(after, until, PLACES).await?;
        let Some(last) = places.last() else { return Ok(0.0) };
        after = last.position;
        let lacks = |place: &&Place| {
            applied.get(&place.stream_id).is_some_and(|applied| place.version.get() > *applied)
        };
        if let Some(first) = places.iter().find(lacks) {
            return Ok((Utc::now() - first.recorded_at).as_seconds_f64().max(0.0));
        }
    }
}

/// Measures the current lag of a read model.
pub(crate) async fn lag(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
) -> Result<Lag, Error> {
    let mut lags = lags(session, store, &[model]).await?;
    Ok(lags.pop().unwrap_or_default())
}

/// Measures the current lag of several read models, in their order. Each window of the event store is read
/// once.
///
/// A measurement goes from the checkpoint of each read model to the end of the event store, but no farther than
/// [`WINDOWS_MAX`] and [`PATIENCE`] allow. The age of the oldest event is that of the first one in the order of the
/// event store, also where the number is a minimum.
pub(crate) async fn lags(
    session: &mut Session,
    store: &mut event_store::Session,
    models: &[&ReadModel],
) -> Result<Vec<Lag>, Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut walks = Vec::new();
    for model in models {
        let checkpoint = session.checkpoint(&model.ledger).await?;
        let at = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
        walks.push(Walk { model, at, lagging: HashMap::new(), seconds: None });
    }
    let until = store.take_fence().await?.limit();
    let mut windows = Windows::new(store, models, until);
    for round in 0..WINDOWS_MAX {
        for walk in walks.iter_mut().filter(|walk| walk.at < until) {
            if round == 0 || Instant::now() < deadline {
                walk.step(session, &mut windows, deadline).await?;
            }
        }
    }
    Ok(walks.into_iter().map(|walk| walk.lag(until)).collect())
}

/// The measurement of one read model.
struct Walk<'m> {
    model: &'m ReadModel,
    /// The position up to which events were compared.
    at: Position,
    lagging: HashMap<StreamId, LaggingStream>,
    /// The age of the oldest event that is not applied, once there is one.
    seconds: Option<f64>,
}

impl Walk<'_> {
    /// Compares the next window.
    async fn step(
        &mut self,
        session: &mut Session,
        windows: &mut Windows<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let from = windows.store.skip_gap(self.at, windows.until).await?;
        let (heads, end) = windows.after(from).await?;
        let followed = &self.model.projection.categories;
        let heads: Vec<&StreamHead> = heads
            .iter()
            .filter(|head| followed.iter().any(|it| it.as_str() == head.stream_id.category()))
            .collect();
        let (mut found, complete) = compare(session, self.model, &heads, Some(deadline)).await?;
        found.retain(|stream| !stream.is_parked);
        if self.seconds.is_none() && !found.is_empty() {
            self.seconds = Some(first_age(windows.store, &found, (self.at, end)).await?);
        }
        for stream in found {
            let known = self.lagging.entry(stream.stream_id.clone()).or_insert(stream.clone());
            known.stored = known.stored.max(stream.stored);
        }
        if complete {
            self.at = end;
        }
        Ok(())
    }

    fn lag(self, until: Position) -> Lag {
        Lag {
            events: self.lagging.values().map(LaggingStream::events).sum(),
            seconds: self.seconds.unwrap_or_default(),
            is_minimum: self.at < until,
        }
    }
}

/// Windows of the event store, each of which is read once.
struct Windows<'s> {
    store: &'s mut event_store::Session,
    categories: Vec<Category>,
    until: Position,
    /// By their number.
    read: HashMap<i64, Vec<StreamHead>>,
}

impl<'s> Windows<'s> {
    fn new(store: &'s mut event_store::Session, models: &[&ReadModel], until: Position) -> Self {
        let mut categories: Vec<Category> =
            models.iter().flat_map(|model| model.projection.categories.iter().cloned()).collect();
        categories.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        categories.dedup();
        Self { store, categories, until, read: HashMap::new() }
    }

    /// The streams of the window that contains the position after `at`, and the end of that window. Windows
    /// begin at multiples of their length, so that read models with different checkpoints share them.
    async fn after(&mut self, at: Position) -> Result<(&[StreamHead], Position), Error> {
        let number = at.get() / WINDOW;
        let limit = |position| Position::new(position).map_or(self.until, |it| it.min(self.until));
        let (begin, end) = (limit(number * WINDOW), limit((number + 1) * WINDOW));
        if !self.read.contains_key(&number) {
            let heads = self.store.stream_heads(begin, end, &self.categories).await?;
            self.read.insert(number, heads);
        }
        Ok((self.read.get(&number).map_or(&[], Vec::as_slice), end))
    }
}
