//! Reading events back.

use chrono::{DateTime, Utc};
use domain_events::{Category, Event, Position, StreamId, StreamVersion};
use sqlx::query;

use crate::row::EventRow;
use crate::{Error, Session};

/// A part of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The stream.
    pub stream_id: StreamId,
    /// The first version wanted.
    pub from: StreamVersion,
    /// The last version wanted.
    pub to: StreamVersion,
}

/// The newest event of a stream within a range of positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHead {
    /// The stream.
    pub stream_id: StreamId,
    /// The version of that event.
    pub version: StreamVersion,
    /// When it was stored.
    pub recorded_at: DateTime<Utc>,
}

impl Session {
    /// Reads events of some categories in global order: `after < position <= until`, at most `limit`.
    ///
    /// `until` must be the limit of a decided [`Fence`](crate::Fence).
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn read_events(
        &mut self,
        after: Position,
        until: Position,
        categories: &[Category],
        limit: u32,
    ) -> Result<Vec<Event>, Error> {
        let query = query(
            "SELECT position AS id, position, event_id, stream_id, stream_version, event_type, schema_version,
                    data::text AS data, metadata::text AS metadata, occurred_at, recorded_at
             FROM events
             WHERE position > $1 AND position <= $2 AND split_part(stream_id, '-', 1) = ANY ($3)
             ORDER BY position
             LIMIT $4",
        )
        .bind(after.get())
        .bind(until.get())
        .bind(names(categories))
        .bind(i64::from(limit));
        events(self.read("reading events", query).await?)
    }

    /// Reads parts of many streams with one query, each in version order, at most `limit` events of
    /// each stream.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn read_streams(
        &mut self,
        wanted: &[Wanted],
        limit: u32,
    ) -> Result<Vec<Event>, Error> {
        let streams: Vec<&str> = wanted.iter().map(|part| part.stream_id.as_str()).collect();
        let from: Vec<i64> = wanted.iter().map(|part| part.from.get()).collect();
        let to: Vec<i64> = wanted.iter().map(|part| part.to.get()).collect();
        let query = query(
            "SELECT found.*
             FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS wanted (stream_id, low, high)
             CROSS JOIN LATERAL (
                 SELECT position AS id, position, event_id, stream_id, stream_version, event_type, schema_version,
                        data::text AS data, metadata::text AS metadata, occurred_at, recorded_at
                 FROM events e
                 WHERE e.stream_id = wanted.stream_id
                   AND e.stream_version BETWEEN wanted.low AND wanted.high
                 ORDER BY e.stream_version
                 LIMIT $4
             ) AS found",
        )
        .bind(streams)
        .bind(from)
        .bind(to)
        .bind(i64::from(limit));
        events(self.read("reading streams", query).await?)
    }

    /// The newest event of each stream of some categories with `after < position <= until`.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn stream_heads(
        &mut self,
        after: Position,
        until: Position,
        categories: &[Category],
    ) -> Result<Vec<StreamHead>, Error> {
        let query = query(
            "SELECT stream_id, max(stream_version), max(recorded_at)
             FROM events
             WHERE position > $1 AND position <= $2 AND split_part(stream_id, '-', 1) = ANY ($3)
             GROUP BY stream_id",
        )
        .bind(after.get())
        .bind(until.get())
        .bind(names(categories));
        let rows: Vec<(String, i64, DateTime<Utc>)> =
            self.read("reading stream heads", query).await?;
        rows.into_iter()
            .map(|(stream_id, version, recorded_at)| {
                Ok(StreamHead {
                    stream_id: StreamId::new(stream_id)?,
                    version: StreamVersion::new(version)?,
                    recorded_at,
                })
            })
            .collect::<Result<_, _>>()
            .map_err(|source| Error::Row { table: "events", id: until.get(), source })
    }

    /// The lowest position that no relay has got to yet: neither published nor held.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn lowest_pending_position(&mut self) -> Result<Option<Position>, Error> {
        let query = query(
            "SELECT min(first.position)
             FROM outbox_lanes l CROSS JOIN LATERAL (
                 SELECT o.position FROM outbox o
                 WHERE o.lane = l.lane AND o.processed_at IS NULL AND NOT o.held
                   AND o.available_at IS NULL
                 ORDER BY o.lane, o.id
                 LIMIT 1
             ) AS first",
        );
        let rows: Vec<(Option<i64>,)> = self.read("reading the outbox", query).await?;
        rows.first()
            .and_then(|(lowest,)| lowest.map(Position::new))
            .transpose()
            .map_err(|source| Error::Row { table: "outbox", id: 0, source })
    }
}

fn names(categories: &[Category]) -> Vec<&str> {
    categories.iter().map(Category::as_str).collect()
}

fn events(rows: Vec<EventRow>) -> Result<Vec<Event>, Error> {
    rows.into_iter().map(|row| row.into_event("events")).collect()
}
