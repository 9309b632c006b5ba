//! Puts events of the event store into the outbox again.

use domain_events::Position;
use sqlx::query;

use crate::selection::{PAGE, found_by_index};
use crate::session::{Mode, within};
use crate::{Error, Selection, Session};

impl Session {
    /// Puts the next events of a selection into the outbox again, at most `limit`, in global order, and
    /// reads at most a page of the event store. Returns how many there were, and the position after which
    /// to continue; `None` at the end.
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
            "WITH page AS MATERIALIZED (
                 SELECT e.position, e.event_type, e.recorded_at FROM events e
                 WHERE ",
            found_by_index!(),
            "
                 ORDER BY e.position
                 LIMIT $9
             ), chosen AS MATERIALIZED (
                 SELECT position FROM page
                 WHERE (cardinality($5::text[]) = 0 OR event_type = ANY ($5))
                   AND ($6::timestamptz IS NULL OR recorded_at >= $6)
                   AND ($7::timestamptz IS NULL OR recorded_at < $7)
                 ORDER BY position
                 LIMIT $8
             ), copied AS (
                 INSERT INTO outbox (event_id, stream_id, stream_version, position, event_type,
                                     schema_version, routing_key, payload, metadata, occurred_at,
                                     recorded_at)
                 SELECT e.event_id, e.stream_id, e.stream_version, e.position, e.event_type,
                        e.schema_version, split_part(e.stream_id, '-', 1) || '.' || e.event_type,
                        e.data, e.metadata, e.occurred_at, e.recorded_at
                 FROM chosen JOIN events e ON e.position = chosen.position
                 ORDER BY e.position
             )
             SELECT found.count,
                    -- The page has more to choose if the limit was reached.
                    CASE WHEN found.count = $8 THEN found.last
                         ELSE (SELECT max(position) FROM page) END
             FROM (SELECT count(*), max(position) AS last FROM chosen) AS found"
        ));
        let copy = selection.bind(copy).bind(i64::from(limit)).bind(PAGE);
        let rows: Vec<(i64, Option<i64>)> =
            self.run(Mode::WritePage, "republishing events", copy).await?;
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
