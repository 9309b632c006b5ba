//! Keeps MySQL read models up to date.
//!
//! A projection is a directory of SQL. Its queue is consumed in batches; each batch is one MySQL
//! transaction that holds the effects of its events and the bookkeeping of their streams.
//!
//! **Invariants:**
//! - A delivery is acknowledged only with the proof that its batch was committed.
//! - A stream is applied from version 1 on, without a gap and without a repetition.
//! - The checkpoint of a projection never passes an event that is not applied.

mod apply;
pub mod cli;
mod context;
mod history;
mod inbox;
mod live;
mod metrics;
mod mysql;
mod projection;
mod run;
mod sequence;
mod settings;
mod stream_event;
mod supervise;
mod sweep;
mod trouble;

pub use run::run;
pub use settings::{Servers, Settings};
