//! The event.

use chrono::{DateTime, Utc};

use crate::{EventId, EventType, Json, Position, SchemaVersion, StreamId, StreamVersion};

/// Something that happened, as the application recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Identifies the event for ever.
    pub event_id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// The version of the form of `data`.
    pub schema_version: SchemaVersion,
    /// The place of the event in its stream, if it has one.
    pub origin: Origin,
    /// The payload.
    pub data: Json,
    /// What accompanies the payload: `correlation_id`, `causation_id`, `traceparent`, …; an object.
    pub metadata: Json,
    /// When it happened, by the application's clock; microseconds.
    pub occurred_at: DateTime<Utc>,
    /// When it was stored, by the database's clock; microseconds.
    pub recorded_at: DateTime<Utc>,
}

/// Where an event comes from, and so how it is ordered and deduplicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From the event store: ordered and deduplicated by stream and version.
    Stream {
        /// The stream.
        stream_id: StreamId,
        /// The number of the event within the stream.
        version: StreamVersion,
        /// The place in the whole store; absent where an application numbers its streams itself.
        position: Option<Position>,
    },
    /// A plain integration event: deduplicated by event id, and in order only as it was sent.
    Unversioned {
        /// The stream whose order it keeps on the wire, if any.
        stream_id: Option<StreamId>,
    },
}

impl Event {
    /// The stream, where the event has one.
    pub fn stream_id(&self) -> Option<&StreamId> {
        match &self.origin {
            Origin::Stream { stream_id, .. } => Some(stream_id),
            Origin::Unversioned { stream_id } => stream_id.as_ref(),
        }
    }

    /// The place of the event in its stream; `None` for one that is deduplicated by its id.
    pub fn place(&self) -> Option<(&StreamId, StreamVersion)> {
        match &self.origin {
            Origin::Stream { stream_id, version, .. } => Some((stream_id, *version)),
            Origin::Unversioned { .. } => None,
        }
    }

    /// The place of the event in the whole store, where that is known.
    pub fn position(&self) -> Option<Position> {
        match &self.origin {
            Origin::Stream { position, .. } => *position,
            Origin::Unversioned { .. } => None,
        }
    }
}
