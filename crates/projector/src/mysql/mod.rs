//! MySQL: the read models and their bookkeeping. All MySQL SQL is in this module, but for the
//! statements of projections.
//!
//! **Invariants:**
//! - A session that lost its transaction half way is thrown away, never used again.
//! - `ledger` alone writes the bookkeeping, in the transaction of the effects it stands for.

mod batch;
mod cell;
mod columns;
mod compare;
mod error;
mod inbox;
mod instances;
mod job;
mod ledger;
mod merge;
mod parked;
mod scratch;
mod session;
mod set;
mod shadow;
mod show;
mod tables;

pub(crate) use batch::{Batch, Committed, Gate, Passage};
pub(crate) use columns::TableInfo;
#[cfg(any(test, fuzzing))]
pub(crate) use columns::{Column, Kind};
pub(crate) use compare::{Comparison, Drift, Rows};
pub(crate) use error::{Error, Refusal};
pub(crate) use instances::Instance;
pub(crate) use job::{Job, JobState, Progress, Wishes};
pub(crate) use ledger::{Checkpoint, Ledger};
pub(crate) use merge::{Delta, merge};
pub(crate) use parked::{ParkKind, ParkedReason, ParkedStream};
pub(crate) use scratch::check;
pub(crate) use session::{Options, Session};
pub(crate) use set::{Owner, Row, SetForm};
pub(crate) use shadow::{Databases, InService, Swap, all_tables};
pub(crate) use tables::Migrated;
