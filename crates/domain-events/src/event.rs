//! The type of an event.

use chrono::{DateTime, Utc};

use crate::{EventId, EventType, Json, Position, SchemaVersion, StreamId, StreamVersion};

/// A domain event: something that happened, as the application recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The permanent identifier.
    pub event_id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// The version of the schema of `data`.
    pub schema_version: SchemaVersion,
    /// Where the event comes from: its stream and version, if it has them.
    pub origin: Origin,
    /// The payload.
    pub data: Json,
    /// A JSON object with data about the event: `correlation_id`, `causation_id`, `traceparent` and so on.
    pub metadata: Json,
    /// When it happened, by the application's clock, in microseconds.
    pub occurred_at: DateTime<Utc>,
    /// When it was stored, by the database's clock, in microseconds.
    pub recorded_at: DateTime<Utc>,
}

/// Where an event comes from. This determines how it is ordered and deduplicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An event of a stream, ordered and deduplicated by its version.
    Stream {
        /// The stream.
        stream_id: StreamId,
        /// The version: the number of the event in the stream.
        version: StreamVersion,
        /// The position in the event store; `None` if the application does not use the event store and
        /// numbers its streams itself.
        position: Option<Position>,
    },
    /// An integration event without a version, deduplicated by its id and ordered only by publication.
    Unversioned {
        /// The stream in whose order it is published, if any.
        stream_id: Option<StreamId>,
    },
}

impl Event {
    /// The stream, if the event has one.
    pub fn stream_id(&self) -> Option<&StreamId> {
        match &self.origin {
            Origin::Stream { stream_id, .. } => Some(stream_id),
            Origin::Unversioned { stream_id } => stream_id.as_ref(),
        }
    }

    /// Stream and version; `None` for an event without a version.
    pub fn place(&self) -> Option<(&StreamId, StreamVersion)> {
        match &self.origin {
            Origin::Stream { stream_id, version, .. } => Some((stream_id, *version)),
            Origin::Unversioned { .. } => None,
        }
    }

    /// The position in the event store, if known.
    pub fn position(&self) -> Option<Position> {
        match &self.origin {
            Origin::Stream { position, .. } => *position,
            Origin::Unversioned { .. } => None,
        }
    }
}
