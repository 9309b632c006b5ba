//! The floor of the outbox: an id below which no row is pending.
//!
//! Published rows keep their entries in the index of pending rows until a vacuum removes them, and a
//! vacuum cannot do so while any transaction holds an old snapshot. Each claim would read all these
//! entries: after two minutes of one idle transaction, a claim takes 700 ms instead of 3 ms. The
//! condition `id >= floor` avoids that.
//!
//! A row gets its id before it becomes visible, so the floor never rises above a [`Fence`]; an event
//! that is committed late is therefore never below it. Held and delayed rows are found by their own
//! indexes, whatever the floor.
//!
//! The floor is stored in the sequence `outbox_floor`, which the projector and commands read too. A
//! standby or a restored backup has the floor that fits its rows, because both come from the same
//! write-ahead log.

use sqlx::query;

use crate::session::Mode;
use crate::{Error, Fence, Lane, OutboxId, Session};

impl Session {
    /// Raises the floor to the lowest pending row, or just above the fence's limit if that is lower.
    /// Returns the floor.
    ///
    /// The fence must be decided.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn raise_floor(&mut self, fence: &Fence) -> Result<OutboxId, Error> {
        let query = query(
            "WITH lowest AS (
                 SELECT least(min(first.id), $1) AS id
                 FROM outbox_lanes l CROSS JOIN LATERAL (
                     SELECT o.id FROM outbox o
                     WHERE o.lane = l.lane AND o.id >= (SELECT last_value FROM outbox_floor)
                       AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
                     ORDER BY o.lane, o.id
                     LIMIT 1
                 ) AS first
             )
             SELECT CASE WHEN lowest.id > floor.last_value THEN setval('outbox_floor', lowest.id)
                         ELSE floor.last_value END
             FROM lowest CROSS JOIN outbox_floor AS floor",
        )
        .bind(fence.limit().get() + 1);
        let rows: Vec<(i64,)> =
            self.run(Mode::WriteByIndex, "raising the floor of the outbox", query).await?;
        Ok(OutboxId(rows.first().map_or(0, |(floor,)| *floor)))
    }

    /// Checks lanes for pending rows below the floor. If there are any, lowers the floor to the lowest one
    /// and returns its id.
    ///
    /// Rows get ids below the floor when the ids go back: after `TRUNCATE outbox RESTART IDENTITY`, after
    /// `setval`, or in a database restored from a dump, whose sequences are newer than its rows.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn lower_floor(&mut self, lanes: &[Lane]) -> Result<Option<OutboxId>, Error> {
        let lanes: Vec<i16> = lanes.iter().map(|lane| lane.0).collect();
        let query = query(
            "SELECT setval('outbox_floor', below.id)
             FROM (SELECT min(first.id) AS id
                   FROM unnest($1::smallint[]) AS checked (lane)
                   CROSS JOIN LATERAL (
                       SELECT o.id FROM outbox o
                       WHERE o.lane = checked.lane
                         -- Ids below 0, which a role chose itself, are not published.
                         AND o.id >= 0 AND o.id < (SELECT last_value FROM outbox_floor)
                         AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
                       ORDER BY o.lane, o.id
                       LIMIT 1
                   ) AS first) AS below
             WHERE below.id IS NOT NULL",
        )
        .bind(lanes);
        let rows: Vec<(i64,)> =
            self.run(Mode::WriteByIndex, "checking the floor of the outbox", query).await?;
        Ok(rows.first().map(|(id,)| OutboxId(*id)))
    }
}
