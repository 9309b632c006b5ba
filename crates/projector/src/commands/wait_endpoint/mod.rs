//! `GET /v1/projections/{name}/wait?event_id=…&timeout=2s` answers when an event is applied. An application
//! calls it before it reads its own write.

mod watcher;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use domain_events::EventId;
use read_model::ReadModel;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use self::watcher::Waiter;
pub(crate) use self::watcher::{Requests, watch};

const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// The most requests that wait at the same time: the same port also answers health checks and metrics.
const WAITERS_MAX: usize = 128;

/// The state of the endpoint.
struct Endpoint {
    models: HashMap<String, Arc<ReadModel>>,
    requests: mpsc::Sender<Waiter>,
    places: Semaphore,
}

/// The route, and its requests for [`watch`].
pub(crate) fn route(models: &[Arc<ReadModel>]) -> (Router, Requests) {
    let (requests, received) = mpsc::channel(WAITERS_MAX);
    let models = models.iter().map(|it| (it.name().to_owned(), Arc::clone(it))).collect();
    let endpoint = Endpoint { models, requests, places: Semaphore::new(WAITERS_MAX) };
    let route = Router::new().route("/v1/projections/{name}/wait", get(wait));
    (route.with_state(Arc::new(endpoint)), Requests(received))
}

type Answer = (StatusCode, String);

async fn wait(
    State(endpoint): State<Arc<Endpoint>>,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Answer {
    let Some(model) = endpoint.models.get(&name) else {
        let known: Vec<&String> = endpoint.models.keys().collect();
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
    let Ok(_place) = endpoint.places.try_acquire() else {
        let reason = format!("{WAITERS_MAX} requests are waiting already; try again later");
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": reason }));
    };
    let until = Instant::now() + timeout.min(TIMEOUT_MAX);
    let (sender, receiver) = oneshot::channel();
    let waiter = Waiter { model: Arc::clone(model), event_id, until, answer: sender };
    let stops = (StatusCode::SERVICE_UNAVAILABLE, Some("this projector stops".to_owned()));
    let result = match endpoint.requests.send(waiter).await {
        Ok(()) => receiver.await.unwrap_or(Err(stops)),
        Err(_stopped) => Err(stops),
    };
    match result {
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
