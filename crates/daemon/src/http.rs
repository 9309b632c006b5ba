//! `/livez`, `/readyz` and `/metrics`.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{Exit, Failure, Health};

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// At most this many connections are open. A further one replaces the oldest, so that clients that neither send
/// nor read keep nobody out.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to send a request before its connection is closed.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// The pause after a failure to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The HTTP endpoint of a daemon. No request changes anything.
pub struct Endpoint {
    listener: TcpListener,
    router: Router,
}

impl Endpoint {
    /// Listens on an address.
    ///
    /// # Errors
    ///
    /// When the address is taken, or does not belong to this host.
    pub async fn bind(
        address: SocketAddr,
        health: Health,
        registry: Registry,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| {
                format!("cannot listen on {address}: set http_listen to a free address")
            })
            .map_err(|error| Failure::new(Exit::Configuration, error))?;
        let registry = Arc::new(registry);
        let router = Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(move || async move { ready(&health) }))
            .route("/metrics", get(move || async move { metrics(&registry) }));
        Ok(Self { listener, router })
    }

    /// Adds routes.
    #[must_use]
    pub fn with(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// The address. If port 0 was configured, contains the port that the system chose.
    ///
    /// # Errors
    ///
    /// When the system call fails.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        Ok(self.listener.local_addr().context("reading the HTTP address")?)
    }

    /// Answers requests until the token is cancelled.
    ///
    /// Then drops open connections: a client that never completes its request must not delay the end.
    ///
    /// # Errors
    ///
    /// Never. Errors of single connections are ignored.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Failure> {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(REQUEST_LIMIT);
        let mut connections = JoinSet::new();
        let mut open = VecDeque::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(_ended) = connections.join_next() => {
                    open.retain(|connection: &AbortHandle| !connection.is_finished());
                }
                accepted = self.listener.accept() => {
                    let Ok((stream, _)) = accepted else {
                        // The client has disconnected, or too many files are open. Both are temporary.
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    if open.len() >= CONNECTIONS_MAX
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    let service = TowerToHyperService::new(self.router.clone());
                    let served = http.serve_connection(TokioIo::new(stream), service);
                    open.push_back(connections.spawn(served));
                }
            }
        }
    }
}

fn ready(health: &Health) -> Response {
    let (ready, report) = health.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (status, content_type, format!("{report:#}\n")).into_response()
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Checks that the daemon on this host is ready. For container images without curl.
///
/// # Errors
///
/// When the daemon is not ready, with its report, or does not answer.
pub fn healthcheck(listen: SocketAddr) -> Result<(), Failure> {
    let mut address = listen;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(3)))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let mut response = agent
        .get(format!("http://{address}/readyz"))
        .call()
        .with_context(|| format!("nothing answers on {address}"))
        .map_err(|error| Failure::new(Exit::Unavailable, error))?;
    let report = response.body_mut().read_to_string().unwrap_or_default();
    if response.status() == 200 {
        Ok(())
    } else {
        Err(anyhow::anyhow!("not ready: {}", report.trim()).into())
    }
}
