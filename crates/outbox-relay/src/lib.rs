//! Publishes the outbox of PostgreSQL to RabbitMQ with publisher confirms.
//!
//! An application appends events to the event store, and a trigger copies each into the outbox.
//! Workers of the relay repeat one pass: claim some lanes of the outbox, publish their first events,
//! record the outcome. A claim is one transaction. A relay that dies at any point therefore leaves
//! its events pending, and they are published again: delivery is at least once, each stream in order.
//!
//! # Place in the flow
//!
//! `application -> event-store (PostgreSQL) -> outbox-relay -> broker (RabbitMQ) -> projector`
//!
//! This crate owns the decisions: what to publish when, what to do about a failure, and the
//! operator's commands. All SQL is in `event-store`, all AMQP in `broker`, and everything that is
//! common to both daemons in `daemon`.
//!
//! # Invariants
//!
//! - An event is marked processed only after the broker confirmed it and did not return it.
//! - After the first event of a stream that could not be published, no later event of that stream is
//!   marked.
//! - An outage of a server is never counted against an event, and never parks its stream.
//!
//! # Where to begin
//!
//! Modules depend on each other in one direction, from top to bottom:
//!
//! | module | task |
//! |---|---|
//! | `cli`, `commands` | the command line; `commands` need PostgreSQL only |
//! | `run` | assembles the daemon |
//! | `worker` | repeats passes, reconnects |
//! | `pass` | **start here**: claim, publish, record |
//! | `batch` | the events of one pass |
//! | `disposition` | what happens to each event; pure, and the one place that decides it |
//! | `survey`, `retention`, `listener` | background tasks: floor and gauges, deletion, hints |
//! | `link`, `context` | a worker's broker connection; what all tasks share |
//! | `pace`, `meter` | how much a worker claims at once; what the broker confirms |
//! | `lane_share`, `hint`, `metrics`, `settings`, `error` | leaves |

mod batch;
pub mod cli;
mod commands;
mod context;
mod disposition;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod hint;
mod lane_share;
mod link;
mod listener;
mod meter;
mod metrics;
mod pace;
mod pass;
mod retention;
mod run;
mod settings;
mod survey;
mod worker;

pub use run::run;
pub use settings::{Servers, Settings};
