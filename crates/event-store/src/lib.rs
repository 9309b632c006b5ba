//! PostgreSQL: the event store and the outbox.
//!
//! The only crate with PostgreSQL SQL. A [`Session`] is one connection; each of its methods is one
//! or two statements with a deadline.
//!
//! **Invariants:**
//! - A session that returned an error is thrown away, never used again: a query that was given up
//!   half way leaves the protocol in an unknown state.
//! - `events` is read in global order only up to a [`Fence`] that is decided.
//! - A row of the outbox is marked in the transaction that holds the lock of its lane.

mod append;
mod audit;
mod backlog;
mod claim;
mod due;
mod error;
mod fence;
mod floor;
mod hint;
mod migrate;
mod read;
mod reconcile;
mod retention;
mod row;
mod session;
mod settle;
mod status;
mod waiting;

pub use append::Append;
pub use audit::{Bucket, Lacking, Reach};
pub use backlog::Backlog;
pub use claim::{Claim, ClaimLimits, Entry, Lane, OutboxId};
pub use error::Error;
pub use fence::{Fence, Writer};
pub use hint::Listener;
pub use read::StreamHead;
pub use reconcile::{MissingEvent, Reconciled, Selection};
pub use retention::Deleted;
pub use session::{Options, Session};
pub use settle::{Hold, Reason, Settlement};
pub use status::{Group, OpenWriter, Rates, Status, UnroutableKey, WaitingStreams};
pub use waiting::{Decision, Waiting, WaitingStream};
