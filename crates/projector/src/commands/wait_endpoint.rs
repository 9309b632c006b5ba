//! `GET /v1/projections/{name}/wait?event_id=…&timeout=2s` answers when an event is applied. An application
//! calls it before it reads its own write.

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
/// The most requests that wait at the same time: the same port also answers health checks and metrics.
const WAITERS_MAX: usize = 128;
/// How often to check.
const POLL: Duration = Duration::from_millis(10);

/// The state of the endpoint.
pub(crate) struct Waiting {
    context: Arc<Context>,
    models: HashMap<String, Arc<ReadModel>>,
    /// Shared by all requests, so that they cannot exhaust the connections of the servers.
    sessions: Mutex<Option<Sessions>>,
    places: Semaphore,
}

/// The sessions that all requests share.
struct Sessions {
    mysql: Session,
    store: event_store::Session,
}

/// Whether an event is applied.
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
    let until = Instant::now() + timeout.min(TIMEOUT_MAX);
    loop {
        match waiting.check(model, event_id).await {
            Ok(Seen::Applied) => return answer(StatusCode::OK, &json!({ "applied": true })),
            Ok(Seen::Parked) => {
                let reason =
                    "the stream of the event is parked; `projector parked list` shows the reason";
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
    /// Looks an event up in the event store and its stream in the bookkeeping.
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
            // The transaction that appends the event may not have committed yet.
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
