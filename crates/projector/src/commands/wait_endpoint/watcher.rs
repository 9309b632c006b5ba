//! Looks up what requests wait for. One task asks for all of them, so that many requests cost the servers no
//! more than one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use daemon::{Failure, Health, chain};
use domain_events::{Category, EventId, StreamId, StreamVersion};
use projection::plan::{Head, Heads};
use read_model::{ReadModel, Session};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::context::{Context, component};

/// How often to check.
const POLL: Duration = Duration::from_millis(10);
/// How long a server may take to answer one check. So a request whose own timeout is shorter still learns
/// whether a server is silent or the event is not applied.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

/// A request that waits for an event.
pub(super) struct Waiter {
    pub(super) model: Arc<ReadModel>,
    pub(super) event_id: EventId,
    pub(super) until: Instant,
    pub(super) answer: oneshot::Sender<Result<(), NotApplied>>,
}

/// Why an event is not applied: the status of the answer, and the reason if it is known.
pub(super) type NotApplied = (StatusCode, Option<String>);

/// Where an event is in the event store.
type Place = (StreamId, StreamVersion);

/// A request whose event is in the event store, or not yet.
struct Waiting {
    waiter: Waiter,
    /// It never changes, so the event store is asked until it has the event, and not again.
    place: Option<Place>,
}

impl Waiting {
    fn answer(self, result: Result<(), NotApplied>) {
        // The client may have gone.
        drop(self.waiter.answer.send(result));
    }
}

/// Answers requests until shutdown.
pub(crate) async fn watch(
    context: Arc<Context>,
    health: Health,
    mut requests: Requests,
) -> Result<(), Failure> {
    let stop = context.shutdown.clone();
    let mut watcher = Watcher { context: &context, health, mysql: None, store: None };
    let mut waiting = Vec::new();
    loop {
        let next = async {
            if waiting.is_empty() {
                requests.0.recv().await.map(Some)
            } else {
                sleep(POLL).await;
                Some(None)
            }
        };
        let Some(Some(first)) = stop.run_until_cancelled(next).await else { return Ok(()) };
        let further = std::iter::from_fn(|| requests.0.try_recv().ok());
        waiting
            .extend(first.into_iter().chain(further).map(|waiter| Waiting { waiter, place: None }));
        let check = Box::pin(watcher.check(std::mem::take(&mut waiting)));
        let Some(left) = stop.run_until_cancelled(check).await else { return Ok(()) };
        waiting = left;
    }
}

/// The requests, for the task that answers them.
pub(crate) struct Requests(pub(super) mpsc::Receiver<Waiter>);

struct Watcher<'c> {
    context: &'c Context,
    health: Health,
    mysql: Option<Session>,
    store: Option<event_store::Session>,
}

impl Watcher<'_> {
    /// Answers the requests that need not wait longer. Returns the others.
    async fn check(&mut self, mut waiting: Vec<Waiting>) -> Vec<Waiting> {
        waiting.retain(|it| !it.waiter.answer.is_closed());
        let mut left = Vec::new();
        let mut found: BTreeMap<String, Vec<(Waiting, Place)>> = BTreeMap::new();
        for it in self.find(waiting).await {
            match it.place.clone() {
                // The transaction that appends the event may not have committed yet.
                None => left.push(it),
                Some((stream_id, _)) if !follows(&it.waiter.model, &stream_id) => {
                    let refused = other_category(&it.waiter.model, &stream_id);
                    it.answer(Err((StatusCode::UNPROCESSABLE_ENTITY, Some(refused))));
                }
                Some(place) => {
                    found.entry(it.waiter.model.name().to_owned()).or_default().push((it, place));
                }
            }
        }
        for of_model in found.into_values() {
            left.extend(self.check_model(of_model).await);
        }
        let mut kept = Vec::new();
        for it in left {
            if Instant::now() + POLL < it.waiter.until {
                kept.push(it);
            } else {
                let late = self.too_late(&it.waiter.model);
                it.answer(Err(late));
            }
        }
        kept
    }

    /// Looks the events up whose place is unknown.
    async fn find(&mut self, waiting: Vec<Waiting>) -> Vec<Waiting> {
        let unknown: Vec<EventId> =
            waiting.iter().filter(|it| it.place.is_none()).map(|it| it.waiter.event_id).collect();
        if unknown.is_empty() {
            return waiting;
        }
        let places = in_time("PostgreSQL", places(&mut self.store, self.context, &unknown)).await;
        let mut left = Vec::new();
        for mut it in waiting {
            match &places {
                _ if it.place.is_some() => left.push(it),
                Ok(places) => {
                    it.place = places.get(&it.waiter.event_id).cloned();
                    left.push(it);
                }
                Err(reason) => it.answer(Err(unavailable(reason.clone()))),
            }
        }
        left
    }

    /// Checks the requests of one projection.
    async fn check_model(&mut self, waiting: Vec<(Waiting, Place)>) -> Vec<Waiting> {
        let Some(model) = waiting.first().map(|(it, _)| Arc::clone(&it.waiter.model)) else {
            return Vec::new();
        };
        let mut streams: Vec<&StreamId> = waiting.iter().map(|(_, place)| &place.0).collect();
        streams.sort_unstable();
        streams.dedup();
        let seen = in_time("MySQL", look(&mut self.mysql, self.context, &model, &streams)).await;
        let mut left = Vec::new();
        for (it, (stream_id, version)) in waiting {
            let (heads, paused) = match &seen {
                Ok(seen) => seen,
                Err(reason) => {
                    it.answer(Err(unavailable(reason.clone())));
                    continue;
                }
            };
            let Head { last, is_parked } = heads.get(&stream_id).copied().unwrap_or_default();
            if last.is_some_and(|last| last.version >= version) {
                it.answer(Ok(()));
            } else if is_parked {
                let reason =
                    "the stream of the event is parked; `projector parked list` shows the reason";
                it.answer(Err((StatusCode::CONFLICT, Some(reason.to_owned()))));
            } else if let Some(reason) = paused {
                let name = model.name();
                it.answer(Err(unavailable(format!(
                    "the projection is paused: {reason}; `projector resume {name}` continues it"
                ))));
            } else {
                left.push(it);
            }
        }
        left
    }

    /// The answer when the time of a request has passed: why the event is not applied, if this projector knows.
    fn too_late(&self, model: &ReadModel) -> NotApplied {
        match self.health.reason(&component(model)) {
            None => (StatusCode::GATEWAY_TIMEOUT, None),
            Some(reason) => unavailable(format!("this projector is not ready: {reason}")),
        }
    }
}

/// Looks events up in the event store.
async fn places(
    kept: &mut Option<event_store::Session>,
    context: &Context,
    events: &[EventId],
) -> Result<HashMap<EventId, Place>, event_store::Error> {
    // Without an answer, the connection may have been lost while idle.
    if let Some(mut session) = kept.take()
        && let Ok(places) = session.places_of(events).await
    {
        *kept = Some(session);
        return Ok(places);
    }
    let mut session = event_store::Session::connect(&context.store).await?;
    let places = session.places_of(events).await?;
    *kept = Some(session);
    Ok(places)
}

/// Looks streams up in the bookkeeping. Also returns why the projection is paused, if it is.
async fn look(
    kept: &mut Option<Session>,
    context: &Context,
    model: &ReadModel,
    streams: &[&StreamId],
) -> Result<(Heads, Option<String>), read_model::Error> {
    if let Some(mut session) = kept.take()
        && let Ok(seen) = look_with(&mut session, model, streams).await
    {
        *kept = Some(session);
        return Ok(seen);
    }
    let mut session = Session::connect(&context.mysql).await?;
    let seen = look_with(&mut session, model, streams).await?;
    *kept = Some(session);
    Ok(seen)
}

async fn look_with(
    session: &mut Session,
    model: &ReadModel,
    streams: &[&StreamId],
) -> Result<(Heads, Option<String>), read_model::Error> {
    let heads = session.heads(&model.ledger, streams).await?;
    Ok((heads, session.gate(&model.ledger).await?.paused))
}

/// Awaits a check, for at most [`CHECK_LIMIT`].
async fn in_time<T, E: std::error::Error>(
    server: &str,
    check: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(CHECK_LIMIT, check).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_elapsed) => Err(format!("{server} gave no answer within {CHECK_LIMIT:?}")),
    }
}

fn follows(model: &ReadModel, stream_id: &StreamId) -> bool {
    let category = stream_id.category();
    model.projection.categories.iter().any(|known| known.as_str() == category)
}

/// Why an event of another category is never applied.
fn other_category(model: &ReadModel, stream_id: &StreamId) -> String {
    let followed: Vec<&str> = model.projection.categories.iter().map(Category::as_str).collect();
    format!(
        "the projection {} never applies this event: its stream is of category {}, and the projection \
         follows {}",
        model.name(),
        stream_id.category(),
        followed.join(", ")
    )
}

fn unavailable(reason: String) -> NotApplied {
    (StatusCode::SERVICE_UNAVAILABLE, Some(reason))
}
