//! Sample data for the event store.
//!
//! Several writers append with `append_to_stream`, each stream in order. The id of an event depends on
//! its content only, so repeating a command, or continuing after an error, appends nothing twice.

pub mod cli;
mod import;
mod progress;
mod shop;
mod writers;
