//! Counts and lists events by category and time, so that the projector can compare them with the events
//! it has applied.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use domain_events::{Category, Position, StreamId};
use serde::Serialize;
use sqlx::query;
use uuid::Uuid;

use crate::row::from_row;
use crate::selection::PAGE;
use crate::session::Mode;
use crate::{Error, Lane, Positions, Selection, Session};

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
}

from_row!(Lacking { position, event_id, stream_id, stream_version, event_type, category, bucket });

impl Session {
    /// The positions of the events that are not published yet.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn unpublished(&mut self) -> Result<Positions, Error> {
        let mut found = Positions::default();
        for Lane(lane) in Lane::all() {
            self.pending_in(lane, &mut found).await?;
            let delayed = query(
                "SELECT position FROM outbox
                 WHERE lane = $1 AND processed_at IS NULL AND available_at IS NOT NULL
                   AND position IS NOT NULL",
            )
            .bind(lane);
            let rows: Vec<(i64,)> = self.run(Mode::Page, "reading delayed events", delayed).await?;
            found.extend(rows.into_iter().map(|(position,)| position));
        }
        self.held(&mut found).await?;
        Ok(found)
    }

    async fn pending_in(&mut self, lane: i16, found: &mut Positions) -> Result<(), Error> {
        let mut after = i64::MIN;
        loop {
            let page = query(
                "SELECT max(page.id), array_agg(page.position) FILTER (WHERE page.position IS NOT NULL)
                 FROM (SELECT id, position FROM outbox
                       WHERE lane = $1 AND id > $2
                         AND processed_at IS NULL AND NOT held AND available_at IS NULL
                       ORDER BY id
                       LIMIT $3) AS page",
            )
            .bind(lane)
            .bind(after)
            .bind(PAGE);
            let rows: Vec<(Option<i64>, Option<Vec<i64>>)> =
                self.run(Mode::Page, "reading pending events", page).await?;
            let Some((Some(last), positions)) = rows.into_iter().next() else { return Ok(()) };
            found.extend(positions.into_iter().flatten());
            after = last;
        }
    }

    async fn held(&mut self, found: &mut Positions) -> Result<(), Error> {
        let mut after = (String::new(), i64::MIN);
        loop {
            let page = query(
                "SELECT coalesce(stream_id, event_id::text), id, position FROM outbox
                 WHERE (coalesce(stream_id, event_id::text), id) > ($1, $2)
                   AND processed_at IS NULL AND held
                 ORDER BY coalesce(stream_id, event_id::text), id
                 LIMIT $3",
            )
            .bind(&after.0)
            .bind(after.1)
            .bind(PAGE);
            let rows: Vec<(String, i64, Option<i64>)> =
                self.run(Mode::Page, "reading held events", page).await?;
            found.extend(rows.iter().filter_map(|(.., position)| *position));
            let Some((stream_key, id, _)) = rows.into_iter().next_back() else { return Ok(()) };
            after = (stream_key, id);
        }
    }

    /// Counts the events of some categories by category and interval, the pending ones among `unpublished`.
    /// Calls `progress` after each page with the position that it has reached.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn count_by_bucket(
        &mut self,
        reach: &Reach,
        categories: &[Category],
        unpublished: &Positions,
        mut progress: impl FnMut(i64),
    ) -> Result<Vec<Bucket>, Error> {
        let mut counted: BTreeMap<(String, DateTime<Utc>), Bucket> = BTreeMap::new();
        let (mut after, until) = (reach.after.get(), Some(reach.until.get()));
        let rest = |after| Selection { after: Some(after), until, ..Selection::default() };
        while let Some(end) = self.page_end(&rest(after)).await? {
            let pending: Vec<i64> = unpublished.range(after + 1..=end).collect();
            for Bucket { category, from, appended, pending } in
                self.count_page(reach, (after, end), categories, pending).await?
            {
                let bucket = counted.entry((category.clone(), from)).or_insert(Bucket {
                    category,
                    from,
                    appended: 0,
                    pending: 0,
                });
                bucket.appended += appended;
                bucket.pending += pending;
            }
            progress(end);
            after = end;
        }
        Ok(counted.into_values().collect())
    }

    async fn count_page(
        &mut self,
        reach: &Reach,
        (after, end): (i64, i64),
        categories: &[Category],
        pending: Vec<i64>,
    ) -> Result<Vec<Bucket>, Error> {
        let names: Vec<&str> = categories.iter().map(Category::as_str).collect();
        let query = query(
            "SELECT split_part(e.stream_id, '-', 1) AS category,
                    date_bin(make_interval(secs => $5), e.recorded_at, 'epoch') AS \"from\",
                    count(*) AS appended,
                    count(pending.position) AS pending
             FROM events e
             LEFT JOIN unnest($7::bigint[]) AS pending (position) ON pending.position = e.position
             WHERE e.position > $1 AND e.position <= $2
               AND e.recorded_at >= $3 AND e.recorded_at < $4
               AND split_part(e.stream_id, '-', 1) = ANY ($6)
             GROUP BY 1, 2",
        )
        .bind(after)
        .bind(end)
        .bind(reach.since)
        .bind(reach.before)
        .bind(reach.bucket.as_secs_f64())
        .bind(names)
        .bind(pending);
        self.run(Mode::PageWithValues, "counting events by time", query).await
    }

    /// The events of some streams whose version is above the first given one, up to the second.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn events_beyond(
        &mut self,
        reach: &Reach,
        streams: &[(&StreamId, i64, i64)],
    ) -> Result<Vec<Lacking>, Error> {
        let names: Vec<&str> = streams.iter().map(|(stream_id, ..)| stream_id.as_str()).collect();
        let above: Vec<i64> = streams.iter().map(|(_, above, _)| *above).collect();
        let up_to: Vec<i64> = streams.iter().map(|(.., up_to)| *up_to).collect();
        let query = query(
            "SELECT e.position, e.event_id, e.stream_id, e.stream_version, e.event_type,
                    split_part(e.stream_id, '-', 1) AS category,
                    date_bin(make_interval(secs => $5), e.recorded_at, 'epoch') AS bucket
             FROM unnest($6::text[], $7::bigint[], $8::bigint[]) AS wanted (stream_id, above, up_to)
             CROSS JOIN LATERAL (
                 SELECT * FROM events
                 WHERE events.stream_id = wanted.stream_id
                   AND events.stream_version > wanted.above
                   AND events.stream_version <= wanted.up_to
                 -- Keeps PostgreSQL from scanning all positions once for each stream.
                 OFFSET 0
             ) AS e
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
        .bind(above)
        .bind(up_to);
        self.run(Mode::Page, "listing unapplied events", query).await
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
