//! The event store and the outbox in PostgreSQL.
//!
//! # What it owns
//!
//! All SQL for PostgreSQL, and the migrations in `migrations/postgres`. A [`Session`] is one
//! connection. Each of its methods runs one or a few statements, each with a deadline.
//!
//! # Place in the flow
//!
//! Applications append events with the SQL function `append_to_stream`; a trigger copies each event
//! into the outbox. The relay claims events of the outbox ([`Session::claim`]), publishes them and
//! settles the claim ([`Claim::settle`]). The projector reads history ([`Session::read_events`],
//! [`Session::read_streams`]), when it rebuilds a read model or misses an event. The crate knows
//! neither RabbitMQ nor MySQL.
//!
//! # Invariants
//!
//! - A session that has returned an error is dropped, never used again: an interrupted query leaves
//!   the protocol in an unknown state. The only exception is [`Session::append`].
//! - `events` is read in global order only up to a decided [`Fence`].
//! - A row of the outbox is marked only in the transaction that holds the lock of its lane.
//!
//! # Where to begin
//!
//! | module | task |
//! |---|---|
//! | `session` | connections, deadlines, how a statement is planned |
//! | `claim`, `due`, `settle` | **start here**: publishing, in the order of a pass |
//! | `fence`, `floor` | the two limits that make concurrent writers harmless |
//! | `read`, `counts` | reading history; counting it |
//! | `landmark` | what shows that the event store still has the same history |
//! | `waiting`, `status`, `backlog` | for operators |
//! | `selection`, `reconcile`, `republish`, `positions` | walking through events, page by page |
//! | `retention`, `hint`, `migrate`, `rights`, `append` | deletion, wake-ups, schema, rights of roles, bulk appends |
//! | `complete` | whether a database has the whole event store, or receives it from another server |

mod append;
mod backlog;
mod claim;
mod complete;
mod counts;
mod due;
mod error;
mod fence;
mod floor;
mod hint;
mod landmark;
mod migrate;
mod positions;
mod read;
mod reconcile;
mod republish;
mod retention;
mod rights;
mod row;
mod selection;
mod session;
mod settle;
mod status;
mod waiting;

pub use append::Append;
pub use backlog::{Backlog, Rows, Unpublished};
pub use claim::{Claim, ClaimLimits, Entry, Lane, OutboxId};
pub use counts::{Bucket, Lacking, Reach};
pub use error::Error;
pub use fence::{Fence, Writer};
pub use hint::{Listener, Wake};
pub use landmark::Surroundings;
pub use positions::Positions;
pub use read::{Place, StreamHead};
pub use reconcile::{Compared, MissingEvent, Reconciled};
pub use retention::Deleted;
pub use rights::{Task, rights};
pub use selection::Selection;
pub use session::{Options, Session};
pub use settle::{Hold, Reason, Settlement};
pub use status::{
    Group, LaneLocker, OpenTransaction, Rates, Relay, RelayReport, Status, UnroutableKey,
    WaitingStreams,
};
pub use waiting::{Decision, Waiting, WaitingStream};
