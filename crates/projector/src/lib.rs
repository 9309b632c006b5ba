//! Keeps MySQL read models up to date.

pub mod projection;
pub mod stream_event;
