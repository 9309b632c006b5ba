//! Keeps MySQL read models up to date.
//!
//! A *projection* is a directory with tables and SQL handlers, or a [`RustProjection`]; the crate `projection`
//! defines it. Its *read model* is the set of its tables; the crate `read_model` applies batches of events to
//! them. This crate is the daemon around both:
//!
//! - [`run()`] starts the tasks. They share a `context`: settings, addresses, metrics and the shutdown token.
//! - `consume` takes deliveries from the queues of each projection and applies them, one MySQL transaction for
//!   each batch. `topology` names the exchange and the queues.
//! - `heal` finds events that were lost on the way and applies them from the event store. It also deletes stuck
//!   queues, retries parked streams, and compares how many events were appended, published and applied.
//! - `history` reads the event store: it applies history in order, brings single streams up to date, and
//!   measures the lag.
//! - `survey` finds who holds locks for which batches wait, and whether a relay publishes.
//! - `rebuild` builds a read model beside the live one and swaps the two. It also verifies read models.
//! - `commands` are the operators' commands, and the endpoint that waits for an event; `cli` parses them, and
//!   `output` prints their results.
//! - `failpoints` lets a test kill the process at a named step.
//!
//! **Invariants:**
//! - A delivery is acknowledged after the commit of its batch, after its message has become a dead letter, or
//!   when it is deferred: the event store has its event, and the checkpoint stays before it.
//!   (`consume::deliveries`)
//! - The checkpoint of a projection never passes an event that is neither applied nor parked.
//!   (`projector_history`, `heal::sweeper`)
//! - One function, `history::catch_up`, folds streams from the event store. In live tables it works within an
//!   admitted batch: one that has checked that its handlers belong to these tables.

pub mod cli;
mod commands;
mod consume;
mod context;
mod error;
#[doc(hidden)]
pub mod failpoints;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod heal;
mod history;
mod metrics;
#[cfg(test)]
mod model_test;
mod rebuild;
mod run;
mod settings;
mod survey;
mod topology;

pub use domain_events;
pub use futures_util::future::BoxFuture;
pub use projection::Value;
pub use read_model::{CodeError, Registry, RustProjection, ServerError, Tables};
pub use run::run;
pub use settings::{Servers, Settings};
pub use sqlx;
