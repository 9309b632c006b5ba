//! The part of a claim that handles streams that have waited, because an event failed or was delayed.
//!
//! Each statement handles a limited number of streams, so that a claim stays short however many are
//! due.

use sqlx::{query, query_as};

use crate::claim::{EntryRow, number};
use crate::session::within;
use crate::{Claim, ClaimLimits, Error};

impl Claim<'_> {
    /// Turns delayed events whose time has come into held events that are due now.
    pub(crate) async fn release_delayed(&mut self, lanes: &[i16], share: i64) -> Result<(), Error> {
        let release = query(
            "WITH due AS MATERIALIZED (
                 SELECT o.id, o.lane, coalesce(o.stream_id, o.event_id::text) AS stream_key
                 FROM unnest($1::smallint[]) AS claimed (lane)
                 CROSS JOIN LATERAL (
                     SELECT * FROM outbox
                     WHERE outbox.lane = claimed.lane
                       AND processed_at IS NULL AND available_at <= now()
                     ORDER BY outbox.lane, available_at
                     LIMIT $2
                 ) AS o
             ), released AS (
                 UPDATE outbox SET available_at = NULL, held = true
                 WHERE id IN (SELECT id FROM due)
             )
             INSERT INTO outbox_holds
                 (stream_key, lane, outbox_id, attempts, reason, last_error, until)
             SELECT DISTINCT ON (stream_key) stream_key, lane, id, 0, 'delayed', 'it is due', now()
             FROM due
             ORDER BY stream_key, id
             ON CONFLICT (stream_key) DO NOTHING",
        )
        .bind(lanes)
        .bind(share)
        .execute(&mut *self.transaction);
        within(self.client_limit, "releasing delayed events", release).await.map(drop)
    }

    /// Among the holds that are due: deletes those whose stream has no held event left, and extends
    /// those whose next event must wait for a delayed one.
    pub(crate) async fn tidy_holds(&mut self, lanes: &[i16], share: i64) -> Result<(), Error> {
        let clear = query(
            "DELETE FROM outbox_holds h
             WHERE h.stream_key IN (
                 SELECT due.stream_key
                 FROM unnest($1::smallint[]) AS claimed (lane)
                 CROSS JOIN LATERAL (
                     SELECT stream_key FROM outbox_holds
                     WHERE outbox_holds.lane = claimed.lane AND until <= now()
                     ORDER BY outbox_holds.lane, until
                     LIMIT $2
                 ) AS due
                 WHERE NOT EXISTS (SELECT 1 FROM outbox o
                                   WHERE coalesce(o.stream_id, o.event_id::text) = due.stream_key
                                     AND o.processed_at IS NULL AND o.held))",
        )
        .bind(lanes)
        .bind(share)
        .execute(&mut *self.transaction);
        within(self.client_limit, "deleting empty holds", clear).await?;
        let wait_on = query(
            "UPDATE outbox_holds h
             SET until = next.available_at, attempts = 0, reason = 'delayed',
                 last_error = 'a delayed event comes first'
             FROM (
                 SELECT waiting.stream_key, (
                     SELECT d.available_at FROM outbox d
                     WHERE d.stream_id = waiting.stream_key
                       AND d.processed_at IS NULL AND d.available_at IS NOT NULL
                       AND d.id < (SELECT o.id FROM outbox o
                                   WHERE coalesce(o.stream_id, o.event_id::text)
                                             = waiting.stream_key
                                     AND o.processed_at IS NULL AND o.held
                                   ORDER BY coalesce(o.stream_id, o.event_id::text), o.id
                                   LIMIT 1)
                     ORDER BY d.stream_id, d.id
                     LIMIT 1
                 ) AS available_at
                 FROM unnest($1::smallint[]) AS claimed (lane)
                 CROSS JOIN LATERAL (
                     SELECT stream_key FROM outbox_holds
                     WHERE outbox_holds.lane = claimed.lane AND until <= now()
                     ORDER BY outbox_holds.lane, until
                     LIMIT $2
                 ) AS waiting
             ) AS next
             WHERE h.stream_key = next.stream_key AND next.available_at > now()",
        )
        .bind(lanes)
        .bind(share)
        .execute(&mut *self.transaction);
        within(self.client_limit, "waiting for delayed events", wait_on).await.map(drop)
    }

    /// Reads the first event of each stream that is due for a retry, or all held events of a stream whose
    /// first one has been published since.
    pub(crate) async fn read_due(
        &mut self,
        lanes: &[i16],
        limits: ClaimLimits,
    ) -> Result<(), Error> {
        let query = query_as(
            "SELECT *, CASE WHEN bytes <= $4 THEN payload ELSE '{}' END AS data
             FROM (
                 SELECT *, octet_length(payload)::bigint AS bytes,
                        sum(octet_length(payload)) OVER (ORDER BY id) AS total
                 FROM (
                     SELECT o.id, o.lane, h.stream_key, o.routing_key, h.attempts,
                            false AS waits, NULL::timestamptz AS delayed_until,
                            o.event_id, o.event_type, o.schema_version, o.stream_id,
                            o.stream_version, o.position, o.metadata::text AS metadata,
                            o.occurred_at, coalesce(o.recorded_at, o.created_at) AS recorded_at,
                            o.payload::text AS payload
                     FROM unnest($1::smallint[]) AS claimed (lane)
                     CROSS JOIN LATERAL (
                         SELECT * FROM outbox_holds
                         WHERE outbox_holds.lane = claimed.lane AND until <= now()
                         ORDER BY outbox_holds.lane, until
                         LIMIT $2
                     ) AS h
                     CROSS JOIN LATERAL (
                         SELECT * FROM outbox
                         WHERE coalesce(stream_id, event_id::text) = h.stream_key
                           AND processed_at IS NULL AND held
                           AND NOT EXISTS (SELECT 1 FROM outbox d
                                           WHERE d.stream_id = h.stream_key AND d.id < outbox.id
                                             AND d.processed_at IS NULL
                                             AND d.available_at IS NOT NULL)
                         ORDER BY coalesce(stream_id, event_id::text), id
                         LIMIT CASE WHEN h.attempts = 0 THEN $2 ELSE 1 END
                     ) AS o
                     LIMIT $2
                 ) AS page
             ) AS sized
             WHERE total - bytes < $3",
        )
        .bind(lanes)
        .bind(i64::from(limits.events))
        .bind(number(limits.bytes))
        .bind(number(limits.event_bytes));
        let rows: Vec<EntryRow> = within(
            self.client_limit,
            "reading events that are due again",
            query.fetch_all(&mut *self.transaction),
        )
        .await?;
        self.entries.extend(rows.into_iter().map(EntryRow::into_entry));
        Ok(())
    }
}
