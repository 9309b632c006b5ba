//! The parts that both daemons share: configuration, command line, logs, health, metrics over
//! HTTP, back-off and shutdown.
//!
//! # Place in the flow
//!
//! `outbox-relay` and `projector` are daemons built on this crate. It knows nothing about events, and
//! none of the servers; a change here affects both daemons in the same way.
//!
//! # Invariants
//!
//! - All errors of a configuration are reported at once, each with its origin, and none with a secret.
//! - A state change of a component is logged once, however many tasks notice it.
//! - A task that ends, fails or panics ends the daemon: none dies unnoticed.
//! - A shutdown takes less than 10 s.
//!
//! # Where to begin
//!
//! | module | task |
//! |---|---|
//! | `lifecycle` | **start here**: [`run`] starts and stops the tasks |
//! | [`settings`], [`cli`], [`output`] | layers of configuration; options and results of commands |
//! | `health`, `http` | probes; `/livez`, `/readyz`, `/metrics` |
//! | `lasting` | when to log a failure that lasts |
//! | [`cause`] | what `status` concludes |
//! | `exit`, [`backoff`], `telemetry` | exit codes; waits between retries; logs |

pub mod backoff;
pub mod cause;
pub mod cli;
mod exit;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod http;
mod lasting;
mod lifecycle;
pub mod output;
pub mod settings;
mod telemetry;

pub use exit::{Exit, Failure, chain};
pub use health::{Failing, Health, Probe};
pub use http::{Endpoint, healthcheck};
pub use lasting::{Lasting, Log};
pub use lifecycle::{Tasks, run};
pub use telemetry::{LogFormat, LogSettings, init_logs};

/// Re-exported, so that both daemons await the same token.
pub use tokio_util::sync::CancellationToken;
