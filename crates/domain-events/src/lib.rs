//! What an event is, and its form on the wire.
//!
//! Owns the identifiers, the [`Event`] and the codec between an event and a [`Message`].
//! It does no I/O and knows no database and no broker library.
//!
//! **Invariant:** the payload of an event is carried as the text it was stored as. It is checked to
//! be JSON, but never rebuilt from parsed values, so that no number loses a digit on the way.

mod event;
mod ids;
mod json;
mod wire;

pub use event::{Event, Origin, StoredEvent, StreamRange};
pub use ids::{
    Category, EventId, EventType, InvalidId, Position, SchemaVersion, StreamId, StreamVersion,
};
pub use json::{InvalidJson, Json};
pub use wire::{DecodeError, HeaderValue, Message, header};
