//! Converts rows to events.

use chrono::{DateTime, Utc};
use domain_events::{
    Event, EventId, EventType, InvalidId, Json, Origin, Position, SchemaVersion, StoredEvent,
    StreamId, StreamVersion,
};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use crate::Error;

/// The columns of an event, named as in `events`, and the table's primary key as `id`.
///
/// Stream, version and position are optional, because an outbox row may lack them.
pub(crate) struct EventRow {
    id: i64,
    event_id: Uuid,
    event_type: String,
    schema_version: i32,
    stream_id: Option<String>,
    stream_version: Option<i64>,
    position: Option<i64>,
    data: String,
    metadata: String,
    occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
}

impl FromRow<'_, PgRow> for EventRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            event_id: row.try_get("event_id")?,
            event_type: row.try_get("event_type")?,
            schema_version: row.try_get("schema_version")?,
            stream_id: row.try_get("stream_id")?,
            stream_version: row.try_get("stream_version")?,
            position: row.try_get("position")?,
            data: row.try_get("data")?,
            metadata: row.try_get("metadata")?,
            occurred_at: row.try_get("occurred_at")?,
            recorded_at: row.try_get("recorded_at")?,
        })
    }
}

impl EventRow {
    /// A row of `events`: the database makes sure that it has stream, version and position.
    pub(crate) fn into_stored_event(self) -> Result<StoredEvent, Error> {
        let id = self.id;
        let error = |source| Error::Row { table: "events", id, source };
        let event = self.convert().map_err(error)?;
        event.into_stored().map_err(|_event| error(InvalidId::Position))
    }

    /// The event, unless the row violates a rule of one.
    pub(crate) fn convert(self) -> Result<Event, InvalidId> {
        let stream_id = self.stream_id.map(StreamId::new).transpose()?;
        let origin = match (stream_id, self.stream_version) {
            (Some(stream_id), Some(version)) => Origin::Stream {
                stream_id,
                version: StreamVersion::new(version)?,
                position: self.position.map(Position::new).transpose()?,
            },
            (stream_id, _) => Origin::Unversioned { stream_id },
        };
        Ok(Event {
            event_id: EventId::new(self.event_id)?,
            event_type: EventType::new(self.event_type)?,
            schema_version: SchemaVersion::new(self.schema_version.into())?,
            origin,
            data: Json::from_database(self.data),
            metadata: Json::from_database(self.metadata),
            occurred_at: self.occurred_at,
            recorded_at: self.recorded_at,
        })
    }
}

/// Implements `FromRow` for a struct: each field is read from the column of the same name.
macro_rules! from_row {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl sqlx::FromRow<'_, sqlx::postgres::PgRow> for $type {
            fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: sqlx::Row::try_get(row, stringify!($field))?),+ })
            }
        }
    };
}
pub(crate) use from_row;
