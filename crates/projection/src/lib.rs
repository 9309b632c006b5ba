//! Projections as data: their files, and the plan of a batch of events.
//!
//! A projection is a directory: `projection.toml`, `tables.sql`, and one SQL file for each event type,
//! which holds the handler of the type. This crate reads and checks the directory ([`load_all`]), finds the
//! handler of an event ([`Projection::lookup`]), binds its parameters ([`Statement::bind`]), and describes
//! the effect of a statement ([`Shape`]). [`plan`] decides which events of a batch are applied, and in
//! which groups.
//!
//! **Invariants:**
//! - The crate contacts no server. It reads the files of projections and nothing else.
//! - A value of an event reaches SQL as a bound parameter, never as text. (`no_payload_becomes_sql`)
//! - Within a stream, versions alone decide which events are applied.
//!   (`the_read_model_is_a_sequential_fold`)

mod definition;
mod directive;
mod fault;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod load;
mod parameter;
pub mod plan;
mod refuse;
mod shape;
mod sources;
mod statement;
mod tokens;
mod usage;
mod value;

pub use definition::{Handler, Lookup, Order, Projection, Table};
pub use fault::Fault;
pub use load::load_all;
pub use parameter::{BindError, Parameter, Source};
pub use shape::{
    Action, Assignment, Cast, Class, Condition, Function, LineColumn, NotBatchable, RowSource,
    Rule, Shape, SourceRows, Subquery, Term, Touch,
};
pub use sources::short_hash;
pub use statement::Statement;
pub use usage::{ColumnName, Place, Use};
pub use value::Value;

#[cfg(test)]
mod tests;
