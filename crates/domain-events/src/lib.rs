//! Domain events and their format on the wire.
//!
//! # What it owns
//!
//! The identifiers, the [`Event`], and the conversion between an event and a [`Message`]. It does no
//! I/O, and knows no database and no broker library.
//!
//! # Place in the flow
//!
//! Every other crate builds on it. The relay reads an event from the outbox and encodes it
//! ([`Message::encode`]); `broker` sends and receives messages; the projector decodes them
//! ([`Message::decode`]).
//!
//! # Invariants
//!
//! - The payload of an event is transported as the text that was stored. It is checked to be JSON, but
//!   never rebuilt from parsed values, so that no number loses a digit.
//! - Every message that can be decoded gives the event that was encoded.
//! - No error and no `Debug` output contains a payload.
//!
//! # Where to begin
//!
//! `event` (**start here**), `wire` for the format, `ids` and `json` for the values.

mod event;
mod ids;
mod json;
mod wire;

pub use event::{Event, Landmark, Origin, StoredEvent, StreamRange};
pub use ids::{
    Category, EventId, EventType, InvalidId, Position, SchemaVersion, StreamId, StreamVersion,
};
pub use json::{InvalidJson, Json};
pub use wire::{DecodeError, HeaderValue, Message, header};
