//! Compares the event store with the outbox, and puts events into the outbox again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain_events::Position;
use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, query};
use uuid::Uuid;

use crate::row::from_row;
use crate::session::{Mode, within};
use crate::{Error, Session};

/// The SQL condition of a [`Selection`], whose values are the first seven parameters.
macro_rules! selected {
    () => {
        "($1::bigint IS NULL OR e.position > $1)
               AND ($2::bigint IS NULL OR e.position <= $2)
               AND ($3::timestamptz IS NULL OR e.recorded_at >= $3)
               AND ($4::timestamptz IS NULL OR e.recorded_at < $4)
               AND (cardinality($5::uuid[]) = 0 OR e.event_id = ANY ($5))
               AND (cardinality($6::text[]) = 0 OR e.stream_id = ANY ($6))
               AND (cardinality($7::text[]) = 0 OR e.event_type = ANY ($7))"
    };
}

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

/// The state of the events of a selection in the outbox.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Reconciled {
    /// Events in the event store.
    pub events: i64,
    /// Confirmed by the broker, or skipped by an operator.
    pub processed: i64,
    /// Not published yet, including events of waiting streams.
    pub pending: i64,
    /// Not in the outbox, but old enough to have been published and deleted.
    pub expired: i64,
    /// Not in the outbox, although they are younger than the retention.
    pub missing: i64,
}

from_row!(Reconciled { events, processed, pending, expired, missing });

/// An event that is missing in the outbox.
#[derive(Debug, Clone, Serialize)]
pub struct MissingEvent {
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
}

from_row!(MissingEvent { position, event_id, stream_id, stream_version, event_type });

impl Session {
    /// Compares the events of a selection with the outbox.
    ///
    /// Also returns the first missing events, at most `examples`. `retention` is how long published
    /// rows are kept.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn reconcile(
        &mut self,
        selection: &Selection,
        retention: Duration,
        examples: u32,
    ) -> Result<(Reconciled, Vec<MissingEvent>), Error> {
        let counts = query(concat!(
            "WITH captured AS (
                 SELECT position, bool_or(processed_at IS NOT NULL) AS processed
                 FROM outbox WHERE position IS NOT NULL GROUP BY position
             )
             SELECT count(*) AS events,
                    count(*) FILTER (WHERE c.processed) AS processed,
                    count(*) FILTER (WHERE NOT c.processed) AS pending,
                    count(*) FILTER (WHERE c.position IS NULL AND e.recorded_at < now()
                                     - make_interval(secs => $8)) AS expired,
                    count(*) FILTER (WHERE c.position IS NULL AND e.recorded_at >= now()
                                     - make_interval(secs => $8)) AS missing
             FROM events e LEFT JOIN captured c ON c.position = e.position
             WHERE ",
            selected!()
        ));
        let counts = selection.bind(counts).bind(retention.as_secs_f64());
        let rows: Vec<Reconciled> =
            self.run(Mode::Scan, "comparing events with the outbox", counts).await?;
        let none = Reconciled { events: 0, processed: 0, pending: 0, expired: 0, missing: 0 };
        let counted = rows.first().copied().unwrap_or(none);
        if counted.missing == 0 {
            return Ok((counted, Vec::new()));
        }
        let missing = query(concat!(
            "SELECT e.position, e.event_id, e.stream_id, e.stream_version, e.event_type
             FROM events e
             WHERE ",
            selected!(),
            "
               AND e.recorded_at >= now() - make_interval(secs => $8)
               AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.position = e.position)
             ORDER BY e.position
             LIMIT $9"
        ));
        let missing =
            selection.bind(missing).bind(retention.as_secs_f64()).bind(i64::from(examples));
        Ok((counted, self.run(Mode::Scan, "listing missing events", missing).await?))
    }

    /// Counts the events of a selection.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn count_events(&mut self, selection: &Selection) -> Result<i64, Error> {
        let count = query(concat!(
            "SELECT count(*) FROM events e
             WHERE ",
            selected!()
        ));
        let rows: Vec<(i64,)> =
            self.run(Mode::Scan, "counting events", selection.bind(count)).await?;
        Ok(rows.first().map_or(0, |(count,)| *count))
    }

    /// Puts the next events of a selection into the outbox again, at most `limit`, in global order.
    /// Returns how many there were, and the position after which to continue; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the statement fails; then it has put none of them into the outbox.
    pub async fn republish(
        &mut self,
        selection: &Selection,
        limit: u32,
    ) -> Result<Option<(i64, Position)>, Error> {
        let copy = query(concat!(
            "WITH chosen AS MATERIALIZED (
                 SELECT * FROM events e
                 WHERE ",
            selected!(),
            "
                 ORDER BY e.position
                 LIMIT $8
             ), copied AS (
                 INSERT INTO outbox (event_id, stream_id, stream_version, position, event_type,
                                     schema_version, routing_key, payload, metadata, occurred_at,
                                     recorded_at)
                 SELECT event_id, stream_id, stream_version, position, event_type, schema_version,
                        split_part(stream_id, '-', 1) || '.' || event_type, data, metadata,
                        occurred_at, recorded_at
                 FROM chosen
                 ORDER BY position
             )
             SELECT count(*), max(position) FROM chosen"
        ));
        let copy = selection.bind(copy).bind(i64::from(limit));
        let rows: Vec<(i64, Option<i64>)> =
            self.run(Mode::Write, "republishing events", copy).await?;
        let (count, last) = rows.first().copied().unwrap_or_default();
        let last = last.map(Position::new).transpose().map_err(|source| Error::Row {
            table: "events",
            id: last.unwrap_or_default(),
            source,
        })?;
        Ok(last.map(|last| (count, last)))
    }

    /// Records in `outbox_audit` that an operator republishes events.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn audit_republish(&mut self, actor: &str, what: &str) -> Result<(), Error> {
        let limit = self.client_limit();
        let insert =
            query("INSERT INTO outbox_audit (actor, action, reason) VALUES ($1, 'republish', $2)")
                .bind(actor)
                .bind(what)
                .execute(&mut self.connection);
        within(limit, "recording a republication", insert).await.map(drop)
    }
}

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

impl Selection {
    /// Binds the first seven parameters.
    fn bind<'q>(&'q self, query: PgQuery<'q>) -> PgQuery<'q> {
        query
            .bind(self.after)
            .bind(self.until)
            .bind(self.since)
            .bind(self.before)
            .bind(&self.event_ids)
            .bind(&self.streams)
            .bind(&self.event_types)
    }
}
