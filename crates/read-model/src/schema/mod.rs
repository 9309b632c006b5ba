//! Making, swapping, comparing and showing tables.

mod compare;
mod migrator;
mod scratch;
mod shadow;
mod show;
mod tables;

pub(crate) use compare::patiently;
pub use compare::{Comparison, Drift, Rows};
pub(crate) use migrator::Migrations;
pub use scratch::{Checked, check};
pub use shadow::{Databases, InService, Swap, Ticket, all_tables};
pub use show::Rows as TableRows;
pub use tables::Migrated;
