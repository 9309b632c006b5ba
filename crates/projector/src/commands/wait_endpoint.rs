//! `GET /v1/projections/{name}/wait?event_id=…&timeout=2s` answers when an event is applied. An application
//! calls it before it reads its own write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use daemon::{Health, chain};
use domain_events::{Category, EventId, StreamId, StreamVersion};
use projection::plan::Head;
use read_model::{ReadModel, Session};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::context::{Context, component};

const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// The most requests that wait at the same time: the same port also answers health checks and metrics.
const WAITERS_MAX: usize = 128;
/// How often to check.
const POLL: Duration = Duration::from_millis(10);
/// How long a server may take to answer one check. So a request whose own timeout is shorter still learns
/// whether a server is silent or the event is not applied.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

/// The state of the endpoint. All requests share the connections, so that they cannot exhaust those of the
/// servers.
pub(crate) struct Waiting {
    context: Arc<Context>,
    models: HashMap<String, Arc<ReadModel>>,
    health: Health,
    mysql: Mutex<Option<Session>>,
    store: Mutex<Option<event_store::Session>>,
    places: Semaphore,
}

/// Where an event is in the event store.
type Place = (StreamId, StreamVersion);

/// What a read model says about a stream.
struct Seen {
    head: Head,
    /// Why the projection is paused.
    paused: Option<String>,
}

/// The routes.
pub(crate) fn route(context: &Arc<Context>, models: &[Arc<ReadModel>], health: Health) -> Router {
    let waiting = Waiting {
        context: Arc::clone(context),
        models: models.iter().map(|it| (it.name().to_owned(), Arc::clone(it))).collect(),
        health,
        mysql: Mutex::default(),
        store: Mutex::default(),
        places: Semaphore::new(WAITERS_MAX),
    };
    Router::new().route("/v1/projections/{name}/wait", get(wait)).with_state(Arc::new(waiting))
}

type Answer = (StatusCode, String);

async fn wait(
    State(waiting): State<Arc<Waiting>>,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Answer {
    let Some(model) = waiting.models.get(&name) else {
        let known: Vec<&String> = waiting.models.keys().collect();
        let reason =
            format!("this projector does not run the projection {name}; it runs {known:?}");
        return answer(StatusCode::NOT_FOUND, &json!({ "error": reason }));
    };
    let event_id = query.get("event_id").map(|text| EventId::parse(text));
    let timeout = query.get("timeout").map_or(Ok(TIMEOUT), |text| humantime::parse_duration(text));
    let (Some(Ok(event_id)), Ok(timeout)) = (event_id, timeout) else {
        let reason = "expected ?event_id=<uuid>&timeout=<duration, for example 500ms or 2s>";
        return answer(StatusCode::BAD_REQUEST, &json!({ "error": reason }));
    };
    let Ok(_place) = waiting.places.try_acquire() else {
        let reason = format!("{WAITERS_MAX} requests are waiting already; try again later");
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": reason }));
    };
    match waiting.wait(model, event_id, timeout.min(TIMEOUT_MAX)).await {
        Ok(()) => answer(StatusCode::OK, &json!({ "applied": true })),
        Err((status, None)) => answer(status, &json!({ "applied": false })),
        Err((status, Some(reason))) => {
            answer(status, &json!({ "applied": false, "error": reason }))
        }
    }
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    (status, format!("{body}\n"))
}

/// Why an event is not applied.
type NotApplied = (StatusCode, Option<String>);

impl Waiting {
    /// Waits until an event is applied, or until waiting longer is in vain.
    async fn wait(
        &self,
        model: &ReadModel,
        event_id: EventId,
        limit: Duration,
    ) -> Result<(), NotApplied> {
        let until = Instant::now() + limit;
        // The transaction that appends the event may not have committed yet.
        let (stream_id, version) = loop {
            match self.place_of(event_id).await.map_err(unavailable)? {
                Some(place) => break place,
                None => self.pause(model, until).await?,
            }
        };
        refuse_other_category(model, &stream_id)?;
        loop {
            let Seen { head, paused } = self.look(model, &stream_id).await.map_err(unavailable)?;
            if head.last.is_some_and(|last| last.version >= version) {
                return Ok(());
            }
            if head.is_parked {
                let reason =
                    "the stream of the event is parked; `projector parked list` shows the reason";
                return Err((StatusCode::CONFLICT, Some(reason.to_owned())));
            }
            if let Some(reason) = paused {
                let name = model.name();
                return Err(unavailable(format!(
                    "the projection is paused: {reason}; `projector resume {name}` continues it"
                )));
            }
            self.pause(model, until).await?;
        }
    }

    /// Waits for the next check. After the time of the request: says why the event is not applied, if this
    /// projector knows.
    async fn pause(&self, model: &ReadModel, until: Instant) -> Result<(), NotApplied> {
        if Instant::now() + POLL < until {
            sleep(POLL).await;
            return Ok(());
        }
        match self.health.reason(&component(model)) {
            None => Err((StatusCode::GATEWAY_TIMEOUT, None)),
            Some(reason) => Err(unavailable(format!("this projector is not ready: {reason}"))),
        }
    }

    /// Looks an event up in the event store.
    async fn place_of(&self, event_id: EventId) -> Result<Option<Place>, String> {
        in_time("PostgreSQL", async {
            let mut shared = self.store.lock().await;
            // Without an answer, the connection may have been lost while idle.
            if let Some(mut session) = shared.take()
                && let Ok(place) = session.place_of(event_id).await
            {
                *shared = Some(session);
                return Ok(place);
            }
            let mut session = event_store::Session::connect(&self.context.store).await?;
            let place = session.place_of(event_id).await?;
            *shared = Some(session);
            Ok::<_, event_store::Error>(place)
        })
        .await
    }

    /// Looks a stream up in the bookkeeping.
    async fn look(&self, model: &ReadModel, stream_id: &StreamId) -> Result<Seen, String> {
        in_time("MySQL", async {
            let mut shared = self.mysql.lock().await;
            if let Some(mut session) = shared.take()
                && let Ok(seen) = seen(&mut session, model, stream_id).await
            {
                *shared = Some(session);
                return Ok(seen);
            }
            let mut session = Session::connect(&self.context.mysql).await?;
            let seen = seen(&mut session, model, stream_id).await?;
            *shared = Some(session);
            Ok::<_, read_model::Error>(seen)
        })
        .await
    }
}

async fn seen(
    session: &mut Session,
    model: &ReadModel,
    stream_id: &StreamId,
) -> Result<Seen, read_model::Error> {
    let heads = session.heads(&model.ledger, &[stream_id]).await?;
    let paused = session.gate(&model.ledger).await?.paused;
    Ok(Seen { head: heads.get(stream_id).copied().unwrap_or_default(), paused })
}

/// Awaits a check, for at most [`CHECK_LIMIT`]. It includes the wait for other requests: they share a
/// connection, so all of them wait for the same server.
async fn in_time<T, E: std::error::Error>(
    server: &str,
    check: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(CHECK_LIMIT, check).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_elapsed) => Err(format!("{server} gave no answer within {CHECK_LIMIT:?}")),
    }
}

/// A stream of a category that the projection does not follow is never applied.
fn refuse_other_category(model: &ReadModel, stream_id: &StreamId) -> Result<(), NotApplied> {
    let followed = &model.projection.categories;
    let category = stream_id.category();
    if followed.iter().any(|known| known.as_str() == category) {
        return Ok(());
    }
    let followed: Vec<&str> = followed.iter().map(Category::as_str).collect();
    let reason = format!(
        "the projection {} never applies this event: its stream is of category {category}, and the projection \
         follows {}",
        model.name(),
        followed.join(", ")
    );
    Err((StatusCode::UNPROCESSABLE_ENTITY, Some(reason)))
}

fn unavailable(reason: String) -> NotApplied {
    (StatusCode::SERVICE_UNAVAILABLE, Some(reason))
}
