//! Selects events of the event store, and walks through them page by page.
//!
//! No statement reads more than a page, however many events there are: a statement over everything would
//! meet its time limit, and would keep a snapshot that vacuums wait for.

use chrono::{DateTime, Utc};
use domain_events::Position;
use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, query};
use uuid::Uuid;

use crate::session::Mode;
use crate::{Error, Session};

/// How many events a page has.
pub(crate) const PAGE: i64 = 50_000;

/// The conditions of a [`Selection`] that an index finds. Their values are the first four parameters.
macro_rules! found_by_index {
    () => {
        "($1::bigint IS NULL OR e.position > $1)
               AND ($2::bigint IS NULL OR e.position <= $2)
               AND (cardinality($3::uuid[]) = 0 OR e.event_id = ANY ($3))
               AND (cardinality($4::text[]) = 0 OR e.stream_id = ANY ($4))"
    };
}
/// All conditions of a [`Selection`]. Their values are the first seven parameters.
macro_rules! selected {
    () => {
        concat!(
            crate::selection::found_by_index!(),
            "
               AND (cardinality($5::text[]) = 0 OR e.event_type = ANY ($5))
               AND ($6::timestamptz IS NULL OR e.recorded_at >= $6)
               AND ($7::timestamptz IS NULL OR e.recorded_at < $7)"
        )
    };
}
pub(crate) use {found_by_index, selected};

/// Selects events of the event store. An event must match every field that is set.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Selection {
    /// Only events after this position.
    pub after: Option<i64>,
    /// Only events up to and including this position.
    pub until: Option<i64>,
    /// Only events recorded at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Only events recorded before this time.
    pub before: Option<DateTime<Utc>>,
    /// Only events with one of these ids, unless empty.
    pub event_ids: Vec<Uuid>,
    /// Only events of one of these streams, unless empty.
    pub streams: Vec<String>,
    /// Only events of one of these types, unless empty.
    pub event_types: Vec<String>,
}

pub(crate) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

impl Selection {
    /// Binds the parameters of the conditions that an index finds.
    fn bind_index<'q>(&'q self, query: PgQuery<'q>) -> PgQuery<'q> {
        query.bind(self.after).bind(self.until).bind(&self.event_ids).bind(&self.streams)
    }

    /// Binds the parameters of all conditions.
    pub(crate) fn bind<'q>(&'q self, query: PgQuery<'q>) -> PgQuery<'q> {
        self.bind_index(query).bind(&self.event_types).bind(self.since).bind(self.before)
    }

    /// The part of it up to a position.
    pub(crate) fn up_to(&self, end: i64) -> Self {
        Self { until: Some(end), ..self.clone() }
    }
}

impl Session {
    /// Adds to a selection the positions between which its times are, so that no more is read than needed.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn narrow(&mut self, mut selection: Selection) -> Result<Selection, Error> {
        if let Some(since) = selection.since {
            let first = self.position_before(since).await?.get();
            selection.after = Some(selection.after.map_or(first, |after| after.max(first)));
        }
        if let Some(before) = selection.before {
            let last = self.position_after(before).await?;
            selection.until = Some(selection.until.map_or(last, |until| until.min(last)));
        }
        Ok(selection)
    }

    /// The position at which the next page of a selection ends; `None` when nothing is left.
    pub(crate) async fn page_end(&mut self, selection: &Selection) -> Result<Option<i64>, Error> {
        let end = query(concat!(
            "SELECT max(page.position)
             FROM (SELECT e.position FROM events e
                   WHERE ",
            found_by_index!(),
            "
                   ORDER BY e.position
                   LIMIT $5) AS page"
        ));
        let end = selection.bind_index(end).bind(PAGE);
        let rows: Vec<(Option<i64>,)> = self.run(Mode::Page, "reading a page", end).await?;
        Ok(rows.first().and_then(|(end,)| *end))
    }

    /// Counts the events of a selection. Calls `progress` after each page with the number so far.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn count_events(
        &mut self,
        selection: &Selection,
        mut progress: impl FnMut(i64),
    ) -> Result<i64, Error> {
        let (mut rest, mut total) = (selection.clone(), 0);
        while let Some(end) = self.page_end(&rest).await? {
            let page = rest.up_to(end);
            let count = query(concat!("SELECT count(*) FROM events e WHERE ", selected!()));
            let rows: Vec<(i64,)> =
                self.run(Mode::Page, "counting events", page.bind(count)).await?;
            total += rows.first().map_or(0, |(count,)| *count);
            progress(total);
            rest.after = Some(end);
        }
        Ok(total)
    }

    /// A position up to which every event was recorded before `time`.
    ///
    /// Found by binary search. Positions and times increase together except where appends overlap, so
    /// the search aims one hour before `time`. Each step looks at many events: one with a wrong time, which
    /// an application inserted, does not mislead it.
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
                 -- Not (low + high + 1) / 2, which overflows.
                 CROSS JOIN LATERAL (SELECT low + (high - low + 1) / 2 AS mid) AS half
                 CROSS JOIN LATERAL (
                     SELECT coalesce(max(near.recorded_at) < $1 - interval '1 hour', true) AS early
                     FROM (SELECT e.recorded_at FROM events e
                           WHERE e.position <= mid ORDER BY e.position DESC LIMIT 1000) AS near
                 ) AS found
                 WHERE low < high
             )
             SELECT low FROM search WHERE low >= high LIMIT 1",
        )
        .bind(time);
        let rows: Vec<(i64,)> = self.run(Mode::Read, "searching a position by time", query).await?;
        let low = rows.first().map_or(0, |(low,)| *low);
        Position::new(low).map_err(|source| Error::Row { table: "events", id: low, source })
    }

    /// A position after which every event was recorded at `time` or later. Found like that of
    /// [`Session::position_before`].
    async fn position_after(&mut self, time: DateTime<Utc>) -> Result<i64, Error> {
        let query = query(
            "WITH RECURSIVE search (low, high) AS (
                 SELECT 0::bigint, (SELECT coalesce(max(position), 0) FROM events)
                 UNION ALL
                 SELECT CASE WHEN found.late THEN low ELSE mid + 1 END,
                        CASE WHEN found.late THEN mid ELSE high END
                 FROM search
                 CROSS JOIN LATERAL (SELECT low + (high - low) / 2 AS mid) AS half
                 CROSS JOIN LATERAL (
                     SELECT coalesce(min(near.recorded_at) >= $1 + interval '1 hour', true) AS late
                     FROM (SELECT e.recorded_at FROM events e
                           WHERE e.position > mid ORDER BY e.position LIMIT 1000) AS near
                 ) AS found
                 WHERE low < high
             )
             SELECT low FROM search WHERE low >= high LIMIT 1",
        )
        .bind(time);
        let rows: Vec<(i64,)> = self.run(Mode::Read, "searching a position by time", query).await?;
        Ok(rows.first().map_or(0, |(low,)| *low))
    }
}
