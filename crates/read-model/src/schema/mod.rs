//! Creates, swaps, compares and shows tables.

mod attached;
mod compare;
mod scratch;
mod shadow;
mod show;
mod tables;
mod warnings;

pub use attached::Attached;
pub use compare::{ColumnDrift, Comparison, Drift, Rows, StreamAt};
pub use scratch::{Checked, check};
pub use shadow::{Databases, InService, Swap, Ticket, all_tables};
pub use show::Rows as TableRows;
pub use tables::Migrated;
