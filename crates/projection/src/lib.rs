//! What a projection is, and what a batch of events does to it.
//!
//! A projection is a directory: `projection.toml`, `tables.sql`, and one SQL file for each event type.
//! This crate reads and checks such a directory ([`load_all`]), finds the handler of an event
//! ([`Projection::lookup`]), binds its parameters ([`Statement::bind`]), and reads what a statement does
//! ([`Shape`]). [`plan`] decides which events of a batch are applied, and in which groups.
//!
//! **Invariants:**
//! - Nothing here knows a server: beside the files of a projection it reads nothing.
//! - A value of an event reaches SQL as a bound parameter, never as text. (`no_payload_becomes_sql`)
//! - Within a stream, versions decide what is applied. (`the_read_model_is_a_sequential_fold`)

mod definition;
mod directive;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod load;
mod parameter;
pub mod plan;
mod refuse;
mod shape;
mod statement;
mod tokens;
mod value;

pub use definition::{Fault, Handler, Lookup, Projection, Table};
pub use load::load_all;
pub use parameter::{BindError, Source};
pub use shape::{Action, Condition, Shape, Term};
pub use statement::Statement;
pub use value::Value;

#[cfg(test)]
mod tests;
