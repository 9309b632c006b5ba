//! The floor of the outbox: below it, no row is pending.
//!
//! The entries of published rows stay in the index of pending rows until a vacuum removes them, and
//! no vacuum can while some transaction holds an old snapshot. Each claim would walk over them all:
//! 3 ms become 700 ms within two minutes of one idle transaction. With `id >= floor` it does not.
//!
//! An id is handed out before its row is seen, so the floor moves only up to a [`Fence`]: an event
//! that is committed late is never below it. Rows that wait (held or delayed) come back by their own
//! indexes, whatever the floor is.
//!
//! It is kept in the sequence `outbox_floor`, so that it is there when a relay starts, for the
//! projector and for commands too. A standby or a backup has the floor that belongs to its rows,
//! because both come from one log.

use sqlx::query;

use crate::{Error, Fence, Lane, OutboxId, Session};

impl Session {
    /// Moves the floor to the lowest pending row, or behind the fence's limit. Gives where it is now.
    ///
    /// The fence must be decided.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
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
            self.write_by_index("raising the floor of the outbox", query).await?;
        Ok(OutboxId(rows.first().map_or(0, |(floor,)| *floor)))
    }

    /// Looks for a pending row of a lane below the floor, where there should be none, and lowers the
    /// floor to it.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn lower_floor(&mut self, lane: Lane) -> Result<Option<OutboxId>, Error> {
        let query = query(
            "SELECT setval('outbox_floor', below.id)
             FROM (SELECT o.id FROM outbox o
                   WHERE o.lane = $1 AND o.id < (SELECT last_value FROM outbox_floor)
                     AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
                   ORDER BY o.lane, o.id
                   LIMIT 1) AS below",
        )
        .bind(lane.0);
        let rows: Vec<(i64,)> =
            self.write_by_index("checking the floor of the outbox", query).await?;
        Ok(rows.first().map(|(id,)| OutboxId(*id)))
    }
}
