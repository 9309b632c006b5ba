//! Read models in MySQL, and their bookkeeping. All MySQL SQL is in this crate, but for the statements of
//! projections.
//!
//! [`Session`] is one connection. [`Ledger`] is the bookkeeping of one projection: where each of its
//! streams stands. [`ReadModel::begin`] opens a [`Batch`] that may change the tables in service, and
//! [`apply`] applies events in one: it locks their streams, lets [`projection::plan`] decide, runs the
//! handlers, moves the bookkeeping, and commits. The crate knows neither queues nor the event store.
//!
//! **Invariants:**
//! - A session that returned an error is thrown away, except after [`Error::Refused`].
//! - The bookkeeping moves in the transaction of the effects that it stands for.
//! - Handlers run in an [`Admitted`] batch only: it has passed the gate, and the tables in service are
//!   those that its handlers are for. (`projector_rebuild`)
//! - Only a commit makes a [`Committed`], without which no delivery is acknowledged.

mod apply;
mod batch;
mod batching;
mod bookkeeping;
mod error;
mod error_codes;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod rust_projection;
mod schema;
mod session;

pub use apply::{
    Admitted, Applied, ApplyError, Breaker, Definition, Part, ReadModel, apply, apply_part, load,
};
pub use batch::{Batch, Committed};
pub use batching::{Forms, TableInfo};
pub use bookkeeping::{
    Checkpoint, Gate, Instance, Job, JobState, Ledger, Lock, LockMode, Options as RebuildOptions,
    ParkKind, ParkedReason, ParkedStream, Progress,
};
pub use error::{Error, Refusal};
pub use rust_projection::{CodeError, Registry, RustProjection, ServerError, Tables};
pub use schema::{
    Checked, Comparison, Databases, Drift, InService, Migrated, Rows, Swap, TableRows, Ticket,
    all_tables, check,
};
pub use session::{Options, Session};
