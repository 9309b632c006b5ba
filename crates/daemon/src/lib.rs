//! What both daemons do around their work.
//!
//! Owns configuration, logs, health, metrics over HTTP, back-off and shutdown. It knows nothing of
//! events, and none of the servers.

pub mod backoff;
pub mod cli;
mod exit;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod http;
mod lifecycle;
pub mod settings;
mod telemetry;

pub use exit::{Exit, Failure, chain};
pub use health::{Health, Probe};
pub use http::{Endpoint, healthcheck};
pub use lifecycle::{Tasks, run};
pub use telemetry::{LogFormat, LogSettings, init_logs};

/// Re-exported, so that both daemons await the same token.
pub use tokio_util::sync::CancellationToken;
