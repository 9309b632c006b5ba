//! Creates, swaps, compares and shows tables.

mod compare;
mod migrator;
mod scratch;
mod shadow;
mod show;
mod tables;

pub(crate) use compare::within_minutes;
pub use compare::{Comparison, Drift, Rows};
pub(crate) use migrator::Migrations;
pub use scratch::{Checked, check};
pub use shadow::{Databases, InService, Swap, Ticket, all_tables};
pub use show::Rows as TableRows;
pub use tables::Migrated;
