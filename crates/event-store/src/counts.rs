//! Counts and lists events by category and time, so that the projector can compare them with the events
//! it has applied.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain_events::{Category, Position, StreamId};
use serde::Serialize;
use sqlx::query;
use uuid::Uuid;

use crate::row::from_row;
use crate::session::Mode;
use crate::{Error, Session};

/// A range of events, and the length of the intervals in which they are counted.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// After this position.
    pub after: Position,
    /// Up to and including this position.
    pub until: Position,
    /// Recorded at or after this time.
    pub since: DateTime<Utc>,
    /// Recorded before this time.
    pub before: DateTime<Utc>,
    /// The length of an interval. Intervals start at multiples of it since 1970.
    pub bucket: Duration,
}

/// The events of one category in one interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The category.
    pub category: String,
    /// The start of the interval.
    pub from: DateTime<Utc>,
    /// How many were appended.
    pub appended: i64,
    /// How many of them are not published yet.
    pub pending: i64,
}

from_row!(Bucket { category, from, appended, pending });

/// An event that may not have been applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lacking {
    /// Its position.
    pub position: i64,
    /// Its id.
    pub event_id: Uuid,
    /// Its stream.
    pub stream_id: String,
    /// Its version in the stream.
    pub stream_version: i64,
    /// Its type.
    pub event_type: String,
    /// Its category.
    #[serde(skip)]
    pub category: String,
    /// The start of the interval in which it is counted.
    #[serde(skip)]
    pub bucket: DateTime<Utc>,
    /// Whether it is not published yet.
    #[serde(skip)]
    pub pending: bool,
}

from_row!(Lacking {
    position,
    event_id,
    stream_id,
    stream_version,
    event_type,
    category,
    bucket,
    pending
});

impl Session {
    /// A position up to which every event was recorded before `time`.
    ///
    /// Found by binary search. Positions and times increase together except where appends overlap, so
    /// the search aims one hour before `time`.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn position_before(&mut self, time: DateTime<Utc>) -> Result<Position, Error> {
        let query = query(
            "WITH RECURSIVE search (low, high) AS (
                 SELECT 0::bigint, (SELECT coalesce(max(position), 0) FROM events)
                 UNION ALL
                 SELECT CASE WHEN found.early THEN mid ELSE low END,
                        CASE WHEN found.early THEN high ELSE mid - 1 END
                 FROM search
                 CROSS JOIN LATERAL (SELECT (low + high + 1) / 2 AS mid) AS half
                 CROSS JOIN LATERAL (
                     SELECT coalesce((SELECT e.recorded_at < $1 - interval '1 hour' FROM events e
                                      WHERE e.position <= mid ORDER BY e.position DESC LIMIT 1),
                                     true) AS early
                 ) AS found
                 WHERE low < high
             )
             SELECT low FROM search WHERE low >= high LIMIT 1",
        )
        .bind(time);
        let rows: Vec<(i64,)> = self.run(Mode::Scan, "searching a position by time", query).await?;
        let low = rows.first().map_or(0, |(low,)| *low);
        Position::new(low).map_err(|source| Error::Row { table: "events", id: low, source })
    }

    /// Counts the events of some categories by category and interval.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn count_by_bucket(
        &mut self,
        reach: &Reach,
        categories: &[Category],
    ) -> Result<Vec<Bucket>, Error> {
        let names: Vec<&str> = categories.iter().map(Category::as_str).collect();
        let query = query(
            "SELECT split_part(e.stream_id, '-', 1) AS category,
                    date_bin(make_interval(secs => $5), e.recorded_at, 'epoch') AS \"from\",
                    count(*) AS appended,
                    count(o.position) AS pending
             FROM events e
             LEFT JOIN (SELECT DISTINCT position FROM outbox WHERE processed_at IS NULL) AS o
                    ON o.position = e.position
             WHERE e.position > $1 AND e.position <= $2
               AND e.recorded_at >= $3 AND e.recorded_at < $4
               AND split_part(e.stream_id, '-', 1) = ANY ($6)
             GROUP BY 1, 2
             ORDER BY 1, 2",
        )
        .bind(reach.after.get())
        .bind(reach.until.get())
        .bind(reach.since)
        .bind(reach.before)
        .bind(reach.bucket.as_secs_f64())
        .bind(names);
        self.run(Mode::Scan, "counting events by time", query).await
    }

    /// The events of streams after the given versions.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn events_beyond(
        &mut self,
        reach: &Reach,
        streams: &[(&StreamId, i64)],
    ) -> Result<Vec<Lacking>, Error> {
        let names: Vec<&str> = streams.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let versions: Vec<i64> = streams.iter().map(|(_, version)| *version).collect();
        let query = query(
            "SELECT e.position, e.event_id, e.stream_id, e.stream_version, e.event_type,
                    split_part(e.stream_id, '-', 1) AS category,
                    date_bin(make_interval(secs => $5), e.recorded_at, 'epoch') AS bucket,
                    o.position IS NOT NULL AS pending
             FROM unnest($6::text[], $7::bigint[]) AS known (stream_id, stream_version)
             CROSS JOIN LATERAL (
                 SELECT * FROM events
                 WHERE events.stream_id = known.stream_id
                   AND events.stream_version > known.stream_version
                 -- Keeps PostgreSQL from scanning all positions once for each stream.
                 OFFSET 0
             ) AS e
             LEFT JOIN (SELECT DISTINCT position FROM outbox WHERE processed_at IS NULL) AS o
                    ON o.position = e.position
             WHERE e.position > $1 AND e.position <= $2
               AND e.recorded_at >= $3 AND e.recorded_at < $4
             ORDER BY e.position",
        )
        .bind(reach.after.get())
        .bind(reach.until.get())
        .bind(reach.since)
        .bind(reach.before)
        .bind(reach.bucket.as_secs_f64())
        .bind(names)
        .bind(versions);
        self.run(Mode::Scan, "listing unapplied events", query).await
    }

    /// The event id at each place, in the order of `places`; `None` where there is no event.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn event_ids(
        &mut self,
        places: &[(&StreamId, domain_events::StreamVersion)],
    ) -> Result<Vec<Option<Uuid>>, Error> {
        let names: Vec<&str> = places.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let versions: Vec<i64> = places.iter().map(|(_, version)| version.get()).collect();
        let query = query(
            "SELECT e.event_id
             FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY
                      AS wanted (stream_id, stream_version, number)
             LEFT JOIN events e ON e.stream_id = wanted.stream_id
                               AND e.stream_version = wanted.stream_version
             ORDER BY wanted.number",
        )
        .bind(names)
        .bind(versions);
        let rows: Vec<(Option<Uuid>,)> = self.run(Mode::Read, "reading event ids", query).await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }
}
