//! Read models in MySQL and their bookkeeping. This crate contains all MySQL SQL, except the handlers of
//! projections.
//!
//! [`Session`] is one connection. [`Ledger`] is the bookkeeping of one projection: where each of its
//! streams stands. [`ReadModel::begin`] opens a [`Batch`]: one transaction that may change the tables in
//! service. The function [`apply()`] applies events in one batch: it locks their streams, lets
//! [`projection::plan`] decide, runs the handlers, updates the bookkeeping, and commits. The crate knows
//! neither queues nor the event store.
//!
//! **Invariants:**
//! - The caller drops a session that returned an error, except after [`Error::Refused`].
//! - The bookkeeping changes in the same transaction as the effects that it records.
//! - Handlers run only in an [`Admitted`] batch: it has passed the gate, and the tables in service match
//!   its handlers. (`projector_retry::a_retry_does_not_apply_previous_handlers_to_a_rebuilt_read_model`)
//! - Only a commit returns a [`Committed`], which is required to acknowledge a delivery.

mod apply;
mod batch;
mod batching;
mod binding;
mod blockers;
mod bookkeeping;
mod error;
mod error_codes;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod migrator;
mod redaction;
mod rust_projection;
mod schema;
mod session;

pub use apply::{
    Admitted, Applied, ApplyError, Breaker, Definition, Files, Part, ReadModel, apply, apply_part,
    load, park_conflicts,
};
pub use batch::{Batch, Committed};
pub use batching::{Forms, TableInfo};
pub use blockers::Blocker;
pub use bookkeeping::{
    AppliedStream, Checkpoint, Failing, Gate, Instance, Job, JobState, Ledger, Lock, LockMode,
    Options as RebuildOptions, ParkKind, ParkedReason, ParkedStream, Progress, QueueUse, Report,
    Run, Service, SkippedEvent, Skips, StoredDefinition,
};
pub use error::{Error, Refusal};
pub use rust_projection::{CodeError, Registry, RustProjection, ServerError, Tables};
pub use schema::{
    Attached, Checked, ColumnDrift, Comparison, Databases, Drift, InService, Migrated, Rows,
    StreamAt, Swap, TableRows, Ticket, all_tables, check,
};
pub use session::{Options, Session};
