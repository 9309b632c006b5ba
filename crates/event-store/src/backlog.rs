//! The lag of the relay.

use sqlx::query;

use crate::row::from_row;
use crate::session::Mode;
use crate::{Error, Session};

/// The state of the outbox.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backlog {
    /// Events to publish next, without held and delayed ones. Counted up to
    /// [`Backlog::COUNTED_AT_MOST`].
    pub pending: i64,
    /// Events of streams that wait. Counted up to the same limit.
    pub held: i64,
    /// Events whose `available_at` is in the future. Counted up to the same limit.
    pub delayed: i64,
    /// Age in seconds of the oldest pending event; 0 when there is none.
    pub oldest_age_seconds: f64,
    /// Age in seconds of the oldest event that could not be published; 0 when there is none.
    pub oldest_held_age_seconds: f64,
}

/// The events that are not published.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Unpublished {
    /// Events to publish next, counted up to [`Backlog::COUNTED_AT_MOST`].
    pub pending: i64,
    /// Events of streams that wait, counted up to the same limit.
    pub held: i64,
    /// Age in seconds of the oldest pending event; 0 when there is none.
    pub oldest_age_seconds: f64,
}

from_row!(Unpublished { pending, held, oldest_age_seconds });

/// Which rows of the outbox to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Those from the floor on. Cheap, also beside an old snapshot.
    FromFloor,
    /// All of them, for a person, also while no relay corrects the floor.
    All,
}

impl Backlog {
    /// Counting stops here, because an exact number does not justify reading millions of rows every
    /// few seconds.
    pub const COUNTED_AT_MOST: i64 = 100_000;
}

impl Session {
    /// Reads the state of the outbox.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn backlog(&mut self, rows: Rows) -> Result<Backlog, Error> {
        let Unpublished { pending, held, oldest_age_seconds } =
            self.count_unpublished(rows).await?;
        let query = query(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox
                                           WHERE processed_at IS NULL AND available_at IS NOT NULL
                                           LIMIT $1) AS delayed),
                    coalesce(extract(epoch FROM clock_timestamp() -
                        (SELECT min(o.created_at)
                         FROM outbox_holds h JOIN outbox o ON o.id = h.outbox_id
                         WHERE h.reason <> 'delayed' AND o.processed_at IS NULL)),
                        0)::float8",
        )
        .bind(Backlog::COUNTED_AT_MOST);
        let rows: Vec<(i64, f64)> = self.run(Mode::Read, "reading the backlog", query).await?;
        let (delayed, oldest_held) = rows.first().copied().unwrap_or_default();
        let oldest_held_age_seconds = oldest_held.max(0.0);
        Ok(Backlog { pending, held, delayed, oldest_age_seconds, oldest_held_age_seconds })
    }

    /// Reads how many events are not published, and for how long. Needs no rights beyond those of a projector.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn count_unpublished(&mut self, rows: Rows) -> Result<Unpublished, Error> {
        let query = query(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox
                                           WHERE id >= CASE WHEN $2 THEN 0
                                                            ELSE (SELECT last_value FROM outbox_floor) END
                                             AND processed_at IS NULL AND NOT held
                                             AND available_at IS NULL
                                           LIMIT $1) AS pending) AS pending,
                    (SELECT count(*) FROM (SELECT 1 FROM outbox
                                           WHERE processed_at IS NULL AND held
                                           LIMIT $1) AS held) AS held,
                    greatest(0, coalesce(extract(epoch FROM clock_timestamp() -
                        (SELECT min(first.created_at)
                         FROM outbox_lanes l CROSS JOIN LATERAL (
                             SELECT o.created_at FROM outbox o
                             WHERE o.lane = l.lane AND o.id >= CASE WHEN $2 THEN 0
                                                      ELSE (SELECT last_value FROM outbox_floor) END
                               AND o.processed_at IS NULL AND NOT o.held
                               AND o.available_at IS NULL
                             ORDER BY o.lane, o.id
                             LIMIT 1
                         ) AS first)), 0))::float8 AS oldest_age_seconds",
        )
        .bind(Backlog::COUNTED_AT_MOST)
        .bind(rows == Rows::All);
        let rows: Vec<Unpublished> =
            self.run(Mode::Read, "counting unpublished events", query).await?;
        Ok(rows.first().copied().unwrap_or_default())
    }
}
