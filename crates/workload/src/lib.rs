//! Sample data for the event store.
//!
//! Appends through `append_to_stream` with several writers at once, each stream in order. Every
//! event has an id that depends on its content alone, so that doing the same again, or going on after
//! an error, appends nothing twice.

pub mod cli;
mod import;
mod progress;
mod shop;
mod writers;
