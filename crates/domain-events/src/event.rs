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

/// Where an event comes from. This determines how it is ordered and deduplicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An event of a stream, ordered and deduplicated by its version.
    Stream {
        /// The stream.
        stream_id: StreamId,
        /// The number of the event within the stream.
        version: StreamVersion,
        /// The position in the event store; `None` if the application inserted the event into `outbox`
        /// itself.
        position: Option<Position>,
    },
    /// An integration event without a version, deduplicated by its id and ordered only by publication.
    Unversioned {
        /// The stream in whose order it is published, if any.
        stream_id: Option<StreamId>,
    },
}

/// An event and its position: if the event store has it there, it has the same history up to that position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landmark {
    /// The position.
    pub position: Position,
    /// The event at that position.
    pub event_id: EventId,
}

impl Event {
    /// The stream, where the event has one.
    pub fn stream_id(&self) -> Option<&StreamId> {
        match &self.origin {
            Origin::Stream { stream_id, .. } => Some(stream_id),
            Origin::Unversioned { stream_id } => stream_id.as_ref(),
        }
    }

    /// The event as one of the event store.
    ///
    /// # Errors
    ///
    /// Gives the event back when it is not in the event store: an application inserted it into
    /// `outbox` itself.
    pub fn into_stored(self) -> Result<StoredEvent, Box<Self>> {
        let (stream_id, version, position) = match self.origin {
            // Positions begin with 1.
            Origin::Stream { stream_id, version, position: Some(position) }
                if position > Position::START =>
            {
                (stream_id, version, position)
            }
            origin => return Err(Box::new(Self { origin, ..self })),
        };
        Ok(StoredEvent {
            event_id: self.event_id,
            event_type: self.event_type,
            schema_version: self.schema_version,
            stream_id,
            version,
            position,
            data: self.data,
            metadata: self.metadata,
            occurred_at: self.occurred_at,
            recorded_at: self.recorded_at,
        })
    }
}

/// An event of the event store: it has a place in a stream, and one in the whole store.
///
/// Projections apply these and nothing else, so that everything they apply can be replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Identifies the event for ever.
    pub event_id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// The version of the form of `data`.
    pub schema_version: SchemaVersion,
    /// The stream.
    pub stream_id: StreamId,
    /// The number of the event within the stream, from 1.
    pub version: StreamVersion,
    /// The place in the whole event store.
    pub position: Position,
    /// The payload.
    pub data: Json,
    /// What accompanies the payload: `correlation_id`, `causation_id`, `traceparent`, …; an object.
    pub metadata: Json,
    /// When it happened, by the application's clock; microseconds.
    pub occurred_at: DateTime<Utc>,
    /// When it was stored, by the database's clock; microseconds.
    pub recorded_at: DateTime<Utc>,
}

/// A run of versions of one stream, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRange {
    /// The stream.
    pub stream_id: StreamId,
    /// The first version.
    pub from: StreamVersion,
    /// The last version.
    pub to: StreamVersion,
}

impl From<StoredEvent> for Event {
    fn from(event: StoredEvent) -> Self {
        Self {
            event_id: event.event_id,
            event_type: event.event_type,
            schema_version: event.schema_version,
            origin: Origin::Stream {
                stream_id: event.stream_id,
                version: event.version,
                position: Some(event.position),
            },
            data: event.data,
            metadata: event.metadata,
            occurred_at: event.occurred_at,
            recorded_at: event.recorded_at,
        }
    }
}
