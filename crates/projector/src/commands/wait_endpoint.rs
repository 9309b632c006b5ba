//! `GET /v1/projections/{name}/wait?event_id=…&timeout=2s`: answers when an event is applied, for an
//! application that reads what it has just written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use daemon::chain;
use domain_events::EventId;
use read_model::{ReadModel, Session};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep};

use crate::context::Context;
use crate::error::Error;

const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Requests that wait at a time: health and metrics are answered by the same port.
const WAITERS_MAX: usize = 128;
/// How often to check.
const POLL: Duration = Duration::from_millis(10);

/// What the endpoint needs.
pub(crate) struct Waiting {
    context: Arc<Context>,
    models: HashMap<String, Arc<ReadModel>>,
    /// One for all requests, so that they cannot exhaust the servers.
    sessions: Mutex<Option<Sessions>>,
    places: Semaphore,
}

/// The sessions that all requests share.
struct Sessions {
    mysql: Session,
    store: event_store::Session,
}

/// How far an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Applied,
    Parked,
    NotYet,
}

/// The route.
pub(crate) fn route(context: &Arc<Context>, models: &[Arc<ReadModel>]) -> Router {
    let models = models.iter().map(|model| (model.name().to_owned(), Arc::clone(model))).collect();
    let (context, places) = (Arc::clone(context), Semaphore::new(WAITERS_MAX));
    let waiting = Waiting { context, models, sessions: Mutex::default(), places };
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
        let reason = format!("no projection {name} runs here; those that do: {known:?}");
        return answer(StatusCode::NOT_FOUND, &json!({ "error": reason }));
    };
    let event_id = query.get("event_id").map(|text| EventId::parse(text));
    let timeout = query.get("timeout").map_or(Ok(TIMEOUT), |text| humantime::parse_duration(text));
    let (Some(Ok(event_id)), Ok(timeout)) = (event_id, timeout) else {
        let reason = "expected ?event_id=<uuid>&timeout=<such as 500ms or 2s>";
        return answer(StatusCode::BAD_REQUEST, &json!({ "error": reason }));
    };
    let Ok(_place) = waiting.places.try_acquire() else {
        let reason = format!("{WAITERS_MAX} requests wait already: try again");
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": reason }));
    };
    let until = Instant::now() + timeout.min(TIMEOUT_MAX);
    loop {
        match waiting.check(model, event_id).await {
            Ok(Seen::Applied) => return answer(StatusCode::OK, &json!({ "applied": true })),
            Ok(Seen::Parked) => {
                let reason = "its stream is parked: `projector parked list` says why";
                return answer(StatusCode::CONFLICT, &json!({ "applied": false, "error": reason }));
            }
            Ok(Seen::NotYet) if Instant::now() + POLL < until => sleep(POLL).await,
            Ok(Seen::NotYet) => {
                return answer(StatusCode::GATEWAY_TIMEOUT, &json!({ "applied": false }));
            }
            Err(error) => {
                let reason = chain(&error);
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return answer(status, &json!({ "applied": false, "error": reason }));
            }
        }
    }
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    (status, format!("{body}\n"))
}

impl Waiting {
    /// Finds out how far an event is, from the event store and the bookkeeping.
    async fn check(&self, model: &ReadModel, event_id: EventId) -> Result<Seen, Error> {
        let mut shared = self.sessions.lock().await;
        let mut sessions = match shared.take() {
            Some(Sessions { mysql, store }) => {
                Sessions { mysql: mysql.or_new(&self.context.mysql).await?, store }
            }
            None => Sessions {
                mysql: Session::connect(&self.context.mysql).await?,
                store: event_store::Session::connect(&self.context.store).await?,
            },
        };
        let seen = sessions.check(model, event_id).await?;
        *shared = Some(sessions);
        Ok(seen)
    }
}

impl Sessions {
    async fn check(&mut self, model: &ReadModel, event_id: EventId) -> Result<Seen, Error> {
        let ledger = &model.ledger;
        let Some((stream_id, version)) = self.store.place_of(event_id).await? else {
            // It may not be committed yet.
            return Ok(Seen::NotYet);
        };
        let heads = self.mysql.heads(ledger, &[&stream_id]).await?;
        let head = heads.get(&stream_id).copied().unwrap_or_default();
        Ok(match head.last {
            Some(last) if last.version >= version => Seen::Applied,
            _ if head.is_parked => Seen::Parked,
            _ => Seen::NotYet,
        })
    }
}
