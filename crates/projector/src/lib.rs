//! Keeps MySQL read models up to date.
//!
//! A projection is a directory of SQL, or a [`RustProjection`]. [`run`] starts the daemon: `consume` follows the
//! queues of each projection, in batches that are one MySQL transaction each; `heal` finds events that were
//! lost on the way, and reads them from the event store; `rebuild` builds a read model beside the live one
//! and swaps them. `commands` are the same functions for operators. What a projection is, is in the crate
//! `projection`; how a batch is applied, in `read_model`.
//!
//! **Invariants:**
//! - A delivery is acknowledged only with the proof that its batch was committed, as a dead letter, or when
//!   the event store has its event and the checkpoint stays before it. (`consume::deliveries`)
//! - The checkpoint of a projection never passes an event that is neither applied nor parked.
//!   (`projector_history`, `heal::sweeper`)
//! - Streams are folded from the event store by one function, `history::catch_up`, within a batch that was
//!   admitted to the tables in service.

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
mod output;
mod rebuild;
mod run;
mod settings;
mod topology;

pub use domain_events;
pub use futures_util::future::BoxFuture;
pub use projection::Value;
pub use read_model::{CodeError, Registry, RustProjection, ServerError, Tables};
pub use run::run;
pub use settings::{Servers, Settings};
pub use sqlx;
