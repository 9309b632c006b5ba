//! Reads events, in global order or by stream.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use domain_events::{
    Category, EventId, Position, StoredEvent, StreamId, StreamRange, StreamVersion,
};
use sqlx::query;
use uuid::Uuid;

use crate::row::EventRow;
use crate::session::Mode;
use crate::{Error, Session};

/// How many positions one statement scans.
const WINDOW: i64 = 50_000;

/// How many stored bytes of payload one statement reads, unless a single event has more.
const PAGE_BYTES: i64 = 4 << 20;

/// The newest event of a stream within a range of positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHead {
    /// The stream.
    pub stream_id: StreamId,
    /// Its newest version in the range.
    pub version: StreamVersion,
}

/// The place of an event, and when it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its place in the event store.
    pub position: Position,
    /// Its stream.
    pub stream_id: StreamId,
    /// Its place in the stream.
    pub version: StreamVersion,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
}

impl Session {
    /// Reads events of some categories in global order, with `after < position <= until`.
    ///
    /// Reads at most `limit` events, 4 MiB of stored payload and 50,000 positions: events of a rare
    /// category may be far apart. It passes a range without any event in one step. Also returns the last position read, after which to continue.
    /// `until` must be the limit of a decided [`Fence`](crate::Fence).
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read_events(
        &mut self,
        after: Position,
        until: Position,
        categories: &[Category],
        limit: u32,
    ) -> Result<(Vec<StoredEvent>, Position), Error> {
        let window = Position::new(after.get() + WINDOW).map_or(until, |end| end.min(until));
        // The stored sizes, which PostgreSQL knows without loading the payloads.
        let query = query(
            "WITH page AS (
                 SELECT position, pg_column_size(data) + pg_column_size(metadata) AS bytes
                 FROM events
                 WHERE position > $1 AND position <= $2
                   AND split_part(stream_id, '-', 1) = ANY ($3)
                 ORDER BY position
                 LIMIT $4
             ), sized AS (
                 SELECT position, sum(bytes) OVER (ORDER BY position) - bytes AS before FROM page
             )
             SELECT e.position AS id, e.position, e.event_id, e.stream_id, e.stream_version, e.event_type, e.schema_version,
                    e.data::text AS data, e.metadata::text AS metadata, e.occurred_at, e.recorded_at
             FROM sized JOIN events e ON e.position = sized.position
             WHERE sized.before < $5
             ORDER BY e.position",
        )
        .bind(after.get())
        .bind(window.get())
        .bind(names(categories))
        .bind(i64::from(limit))
        .bind(PAGE_BYTES);
        let events = events(self.run(Mode::Read, "reading events", query).await?)?;
        let end = match events.last() {
            Some(last) => last.position,
            None => self.skip_gap(window, until).await?,
        };
        Ok((events, end))
    }

    /// The last position before the next event of any category, in `after..=until`.
    ///
    /// A rolled-back or moved sequence leaves gaps, which may be longer than all events together. Whoever scans
    /// positions in windows passes such a gap in one step.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn skip_gap(&mut self, after: Position, until: Position) -> Result<Position, Error> {
        if after >= until {
            return Ok(until);
        }
        let query = query(
            "SELECT position FROM events WHERE position > $1 AND position <= $2
             ORDER BY position LIMIT 1",
        )
        .bind(after.get())
        .bind(until.get());
        let rows: Vec<(i64,)> = self.run(Mode::Read, "searching for the next event", query).await?;
        let before = rows.first().map(|(next,)| Position::new(next - 1)).transpose();
        let before =
            before.map_err(|source| Error::Row { table: "events", id: after.get(), source })?;
        Ok(before.unwrap_or(until))
    }

    /// Reads ranges of many streams with one query, each in version order and with at most `limit`
    /// events.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read_streams(
        &mut self,
        wanted: &[StreamRange],
        limit: u32,
    ) -> Result<Vec<StoredEvent>, Error> {
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
        events(self.run(Mode::Read, "reading streams", query).await?)
    }

    /// For each stream of some categories, its newest event with `after < position <= until`.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn stream_heads(
        &mut self,
        after: Position,
        until: Position,
        categories: &[Category],
    ) -> Result<Vec<StreamHead>, Error> {
        let query = query(
            "SELECT stream_id, max(stream_version)
             FROM events
             WHERE position > $1 AND position <= $2 AND split_part(stream_id, '-', 1) = ANY ($3)
             GROUP BY stream_id",
        )
        .bind(after.get())
        .bind(until.get())
        .bind(names(categories));
        let rows: Vec<(String, i64)> = self.run(Mode::Read, "reading stream heads", query).await?;
        rows.into_iter()
            .map(|(stream_id, version)| {
                let stream_id = StreamId::new(stream_id)?;
                Ok(StreamHead { stream_id, version: StreamVersion::new(version)? })
            })
            .collect::<Result<_, _>>()
            .map_err(|source| Error::Row { table: "events", id: until.get(), source })
    }

    /// The last version of each stream, in the order of `streams`; 0 for a stream without events.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn last_versions(&mut self, streams: &[&str]) -> Result<Vec<i64>, Error> {
        let query = query(
            "SELECT coalesce((SELECT max(e.stream_version) FROM events e
                              WHERE e.stream_id = wanted.stream_id), 0)
             FROM unnest($1::text[]) WITH ORDINALITY AS wanted (stream_id, number)
             ORDER BY wanted.number",
        )
        .bind(streams);
        let rows: Vec<(i64,)> = self.run(Mode::Read, "reading last versions", query).await?;
        Ok(rows.into_iter().map(|(version,)| version).collect())
    }

    /// The stream and version of each of some events. The result omits those that do not exist.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn places_of(
        &mut self,
        events: &[EventId],
    ) -> Result<HashMap<EventId, (StreamId, StreamVersion)>, Error> {
        let ids: Vec<Uuid> = events.iter().copied().map(EventId::uuid).collect();
        let query = query(
            "SELECT event_id, stream_id, stream_version FROM events WHERE event_id = ANY ($1)",
        )
        .bind(ids);
        let rows: Vec<(Uuid, String, i64)> =
            self.run(Mode::Read, "searching for events by their ids", query).await?;
        let place = |(event_id, stream_id, version): (Uuid, String, i64)| {
            let place = (StreamId::new(stream_id)?, StreamVersion::new(version)?);
            Ok((EventId::new(event_id)?, place))
        };
        let places: Result<_, _> = rows.into_iter().map(place).collect();
        places.map_err(|source| Error::Row { table: "events", id: 0, source })
    }

    /// The place and the time of each event with `after < position <= until`, at most `limit`, by position.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn places(
        &mut self,
        after: Position,
        until: Position,
        limit: u32,
    ) -> Result<Vec<Place>, Error> {
        let query = query(
            "SELECT position, stream_id, stream_version, recorded_at FROM events
             WHERE position > $1 AND position <= $2
             ORDER BY position LIMIT $3",
        )
        .bind(after.get())
        .bind(until.get())
        .bind(i64::from(limit));
        let rows: Vec<(i64, String, i64, DateTime<Utc>)> =
            self.run(Mode::Read, "reading the places of events", query).await?;
        let place = |(position, stream_id, version, recorded_at): (_, String, i64, _)| {
            let (position, stream_id) = (Position::new(position)?, StreamId::new(stream_id)?);
            Ok(Place { position, stream_id, version: StreamVersion::new(version)?, recorded_at })
        };
        let places: Result<_, _> = rows.into_iter().map(place).collect();
        places.map_err(|source| Error::Row { table: "events", id: after.get(), source })
    }

    /// When the oldest of some events was recorded; `None` if none of them exists.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn oldest(
        &mut self,
        events: &[(&StreamId, i64)],
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let streams: Vec<&str> = events.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let versions: Vec<i64> = events.iter().map(|(_, version)| *version).collect();
        let query = query(
            "SELECT min(e.recorded_at)
             FROM unnest($1::text[], $2::bigint[]) AS wanted (stream_id, stream_version)
             JOIN events e ON e.stream_id = wanted.stream_id
                          AND e.stream_version = wanted.stream_version",
        )
        .bind(streams)
        .bind(versions);
        let rows: Vec<(Option<DateTime<Utc>>,)> =
            self.run(Mode::Read, "reading an age", query).await?;
        Ok(rows.first().and_then(|(oldest,)| *oldest))
    }

    /// The lowest position of a pending event: neither published nor held nor delayed.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn lowest_pending_position(&mut self) -> Result<Option<Position>, Error> {
        let query = query(
            "SELECT min(first.position)
             FROM outbox_lanes l CROSS JOIN LATERAL (
                 SELECT o.position FROM outbox o
                 WHERE o.lane = l.lane AND o.id >= (SELECT last_value FROM outbox_floor)
                   AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
                   -- Republished events have recorded_at: they were published before.
                   AND o.recorded_at IS NULL
                 ORDER BY o.lane, o.id
                 LIMIT 1
             ) AS first",
        );
        let rows: Vec<(Option<i64>,)> =
            self.run(Mode::Read, "reading the lowest pending position", query).await?;
        rows.first()
            .and_then(|(lowest,)| lowest.map(Position::new))
            .transpose()
            .map_err(|source| Error::Row { table: "outbox", id: 0, source })
    }
}

fn names(categories: &[Category]) -> Vec<&str> {
    categories.iter().map(Category::as_str).collect()
}

fn events(rows: Vec<EventRow>) -> Result<Vec<StoredEvent>, Error> {
    rows.into_iter().map(EventRow::into_stored_event).collect()
}
