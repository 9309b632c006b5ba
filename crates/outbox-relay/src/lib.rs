//! Publishes the outbox of PostgreSQL to RabbitMQ.
//!
//! A worker repeats one pass: claim lanes, read their first events, publish them with confirms,
//! record what became of them. The claim is one transaction, so a relay that dies at any point
//! leaves its events pending, and they are published again: at least once, each stream in order.
//!
//! **Invariants:**
//! - An event is marked processed only after the broker confirmed it and did not return it.
//! - After the first event of a stream that could not be published, no later one is marked.
//! - An outage of a server is no fault of an event: it never makes a stream wait.

pub mod cli;
mod commands;
mod disposition;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod hint;
mod metrics;
mod pass;
mod retention;
mod run;
mod settings;
mod survey;
mod worker;

pub use run::run;
pub use settings::{Servers, Settings};
