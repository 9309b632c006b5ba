//! Keeps MySQL read models up to date.
//!
//! A projection is a directory of SQL, or a [`RustProjection`]. Its queue is consumed in batches; each batch is one MySQL
//! transaction that holds the effects of its events and the bookkeeping of their streams.
//!
//! **Invariants:**
//! - A delivery is acknowledged only with the proof that its batch was committed.
//! - A stream is applied from version 1 on, without a gap and without a repetition.
//! - The checkpoint of a projection never passes an event that is not applied.

mod apply;
mod audit;
mod balance;
mod behind;
pub mod cli;
mod code;
mod commands;
mod context;
mod dry_run;
mod forms;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod in_place;
mod inbox;
mod lane;
mod live;
mod metrics;
mod mysql;
mod partition;
mod projection;
mod rebuild;
mod refold;
mod run;
mod schedule;
mod sequence;
mod settings;
mod supervise;
mod sweep;
mod topology;
mod trouble;
mod unserved;
mod verify;
mod wait;

pub use code::{CodeError, Registry, RustProjection, ServerError, Tables, Value};
pub use domain_events;
pub use futures_util::future::BoxFuture;
pub use run::run;
pub use settings::{Servers, Settings};
pub use sqlx;
