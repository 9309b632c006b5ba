//! Comparing the event store with the outbox, and publishing again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain_events::Position;
use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, query};
use uuid::Uuid;

use crate::row::from_row;
use crate::session::within;
use crate::{Error, Session};

/// The condition of a [`Selection`], for the first seven parameters.
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

/// Which events.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Selection {
    /// After this position.
    pub after: Option<i64>,
    /// Up to and including this position.
    pub until: Option<i64>,
    /// Recorded at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Recorded before this time.
    pub before: Option<DateTime<Utc>>,
    /// With these ids; all when empty.
    pub event_ids: Vec<Uuid>,
    /// Of these streams; all when empty.
    pub streams: Vec<String>,
    /// Of these types; all when empty.
    pub event_types: Vec<String>,
}

/// What became of the events of a selection.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Reconciled {
    /// Events in the event store.
    pub events: i64,
    /// Confirmed by the broker, or skipped by command.
    pub processed: i64,
    /// Still to publish, those of waiting streams included.
    pub pending: i64,
    /// Not in the outbox, but so old that they may have been published and deleted.
    pub expired: i64,
    /// Not in the outbox, though they must be.
    pub missing: i64,
}

from_row!(Reconciled { events, processed, pending, expired, missing });

/// An event that the outbox does not have.
#[derive(Debug, Clone, Serialize)]
pub struct MissingEvent {
    /// Where it is in the event store.
    pub position: i64,
    /// The event.
    pub event_id: Uuid,
    /// Its stream.
    pub stream_id: String,
    /// Its number there.
    pub stream_version: i64,
    /// Its type.
    pub event_type: String,
}

from_row!(MissingEvent { position, event_id, stream_id, stream_version, event_type });

impl Session {
    /// Compares the events of a selection with the outbox.
    ///
    /// Gives up to `examples` missing events. `retention` is how long published rows are kept.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
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
        let rows: Vec<Reconciled> = self.scan("comparing events with the outbox", counts).await?;
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
        Ok((counted, self.scan("listing missing events", missing).await?))
    }

    /// How many events a selection has.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn count_events(&mut self, selection: &Selection) -> Result<i64, Error> {
        let count = query(concat!(
            "SELECT count(*) FROM events e
             WHERE ",
            selected!()
        ));
        let rows: Vec<(i64,)> = self.scan("counting events", selection.bind(count)).await?;
        Ok(rows.first().map_or(0, |(count,)| *count))
    }

    /// Puts the next events of a selection into the outbox again, at most `limit`, in the order of
    /// the event store. Gives how many there were, and the position to go on after.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be told; then none of them is.
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
        let rows: Vec<(i64, Option<i64>)> = self.write("publishing again", copy).await?;
        let (count, last) = rows.first().copied().unwrap_or_default();
        let last = last.map(Position::new).transpose().map_err(|source| Error::Row {
            table: "events",
            id: last.unwrap_or_default(),
            source,
        })?;
        Ok(last.map(|last| (count, last)))
    }

    /// Records that somebody publishes again.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be told.
    pub async fn audit_republish(&mut self, actor: &str, what: &str) -> Result<(), Error> {
        let limit = self.client_limit();
        let insert =
            query("INSERT INTO outbox_audit (actor, action, reason) VALUES ($1, 'republish', $2)")
                .bind(actor)
                .bind(what)
                .execute(&mut self.connection);
        within(limit, "recording a decision", insert).await.map(drop)
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
