//! The floor of the outbox: below it, no row is pending.
//!
//! The entries of published rows stay in the index of pending rows until a vacuum removes them, and
//! no vacuum can while some transaction holds an old snapshot. Each claim would walk over them all:
//! 3 ms become 700 ms within two minutes of one idle transaction. With `id >= floor` it does not.
//!
//! An id is handed out before its row is seen, so the floor moves only up to a [`Fence`]: an event
//! that is committed late is never below it. Rows that wait (held or delayed) come back by their own
//! indexes, whatever the floor is.

use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::query;

use crate::{Error, Fence, Lane, OutboxId, Session};

/// A floor that all workers of a relay share.
#[derive(Debug, Default)]
pub struct Floor(AtomicI64);

impl Floor {
    /// Every pending row has this id, or a higher one; 0 when it is not known.
    pub fn get(&self) -> OutboxId {
        OutboxId(self.0.load(Ordering::Acquire))
    }

    /// Forgets it, because the database may be another one now: after a failover or a restore, ids
    /// may be handed out again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Moves it up from where it was when the work on it began, unless it was changed meanwhile.
    pub fn advance(&self, from: OutboxId, to: OutboxId) -> bool {
        self.0.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Moves it down to a pending row.
    pub fn lower(&self, to: OutboxId) {
        self.0.fetch_min(to.0, Ordering::AcqRel);
    }
}

impl Session {
    /// The lowest pending id at or above `from`, or the one after the fence's limit.
    ///
    /// The fence must be decided. Without a floor to begin with, all dead entries of the index are
    /// walked over, so this asks for one lane at a time then.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn lowest_pending(
        &mut self,
        fence: &Fence,
        from: OutboxId,
    ) -> Result<OutboxId, Error> {
        let all: Vec<i16> = Lane::all().map(|lane| lane.0).collect();
        let at_once = if from.0 == 0 { 1 } else { all.len() };
        let mut lowest = fence.limit().get() + 1;
        for lanes in all.chunks(at_once) {
            let query = query(
                "SELECT min(first.id)
                 FROM unnest($1::smallint[]) AS l (lane) CROSS JOIN LATERAL (
                     SELECT o.id FROM outbox o
                     WHERE o.lane = l.lane AND o.id >= $2
                       AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
                     ORDER BY o.lane, o.id
                     LIMIT 1
                 ) AS first",
            )
            .bind(lanes)
            .bind(from.0);
            let rows: Vec<(Option<i64>,)> =
                self.read("reading the floor of the outbox", query).await?;
            lowest = rows.iter().filter_map(|(id,)| *id).fold(lowest, i64::min);
        }
        Ok(OutboxId(lowest))
    }

    /// A pending row of a lane below the floor, where there should be none.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be asked.
    pub async fn pending_below(
        &mut self,
        lane: Lane,
        floor: OutboxId,
    ) -> Result<Option<OutboxId>, Error> {
        let query = query(
            "SELECT o.id FROM outbox o
             WHERE o.lane = $1 AND o.id < $2
               AND o.processed_at IS NULL AND NOT o.held AND o.available_at IS NULL
             ORDER BY o.lane, o.id
             LIMIT 1",
        )
        .bind(lane.0)
        .bind(floor.0);
        let rows: Vec<(i64,)> = self.read("checking the floor of the outbox", query).await?;
        Ok(rows.first().map(|(id,)| OutboxId(*id)))
    }
}
