//! The divergence of a read model from the event store: it has applied events that the event store does not have.
//!
//! The projection then stays paused until a person has decided. The divergence belongs to tables: it ends when a
//! rebuild puts others in service, and is back when a rollback puts these back.

use domain_events::{Position, StreamId};
use projection::plan::Last;
use sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use uuid::Uuid;

use super::Ledger;
use crate::session::{within, within_minutes};
use crate::{Error, Session};

/// A stream with its last applied event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedStream {
    /// The stream.
    pub stream_id: StreamId,
    /// Its last applied event.
    pub last: Last,
    /// The position of that event; `None` if an earlier release applied it.
    pub position: Option<Position>,
    /// Whether the stream is parked.
    pub is_parked: bool,
}

impl Session {
    /// Whether the tables in service hold events that the event store does not have.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn is_diverged(&mut self, ledger: &Ledger) -> Result<bool, Error> {
        let sql = format!(
            "SELECT COALESCE(p.diverged_epoch = c.epoch, FALSE)
             FROM projector_projections AS p JOIN {} AS c ON c.id = 1 WHERE p.name = ?",
            ledger.checkpoint_table()
        );
        let read = query_scalar(AssertSqlSafe(sql))
            .bind(ledger.projection())
            .fetch_optional(&mut self.connection);
        Ok(within("reading a projection", read).await?.unwrap_or(false))
    }

    /// Records that the tables with this epoch hold events which the event store does not have, and pauses the
    /// projection. Deliveries up to `compared_until` are compared from now on. Waits for running batches.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn set_diverged(
        &mut self,
        ledger: &Ledger,
        epoch: Uuid,
        reason: &str,
        compared_until: Position,
    ) -> Result<(), Error> {
        let update = query(
            "UPDATE projector_projections
             SET paused_reason = ?, paused_at = UTC_TIMESTAMP(6), diverged_epoch = ?,
                 compared_until = GREATEST(COALESCE(compared_until, 0), ?),
                 generation = generation + 1
             WHERE name = ?",
        )
        .bind(reason)
        .bind(epoch)
        .bind(compared_until.get())
        .bind(ledger.projection())
        .execute(&mut self.connection);
        within("pausing a diverged projection", update).await.map(drop)
    }

    /// Ends the divergence, and the pause for it.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn end_divergence(&mut self, ledger: &Ledger) -> Result<(), Error> {
        let update = query(
            "UPDATE projector_projections
             SET paused_reason = NULL, paused_at = NULL, diverged_epoch = NULL
             WHERE name = ? AND diverged_epoch IS NOT NULL",
        )
        .bind(ledger.projection())
        .execute(&mut self.connection);
        within("resuming a projection", update).await.map(drop)
    }

    /// From now on, deliveries up to `until` are compared with the event store. Waits for running batches; later
    /// ones obey.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn compare_deliveries(
        &mut self,
        ledger: &Ledger,
        until: Position,
    ) -> Result<(), Error> {
        let update = query(
            "UPDATE projector_projections
             SET compared_until = GREATEST(COALESCE(compared_until, 0), ?), generation = generation + 1
             WHERE name = ?",
        )
        .bind(until.get())
        .bind(ledger.projection())
        .execute(&mut self.connection);
        within("closing the gate", update).await.map(drop)
    }

    /// At most `limit` streams with applied events, sorted by stream id, beginning behind `after`. With `behind`,
    /// only streams whose last applied event is behind that position. Each call may read the whole bookkeeping.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn applied_streams(
        &mut self,
        ledger: &Ledger,
        behind: Option<Position>,
        after: Option<&StreamId>,
        limit: u32,
    ) -> Result<Vec<AppliedStream>, Error> {
        // A literal: with a parameter, one plan would have to fit both.
        let recent = behind.map_or_else(String::new, |it| format!("AND position > {}", it.get()));
        let sql = format!(
            "SELECT stream_id, version, event_id, parked, position FROM {}
             WHERE stream_id > ? AND version > 0 {recent} ORDER BY stream_id LIMIT ?",
            ledger.streams_table()
        );
        let read = query_as(AssertSqlSafe(sql))
            .persistent(false)
            .bind(after.map_or("", StreamId::as_str))
            .bind(limit)
            .fetch_all(&mut self.connection);
        let rows: Vec<AppliedRow> = within_minutes(read).await?;
        let applied = |(name, version, event_id, is_parked, position): AppliedRow| {
            let (stream_id, head) = ledger.head((name, version, event_id, is_parked))?;
            let position = position.map(|number| ledger.progress.position(number)).transpose()?;
            Ok(head.last.map(|last| AppliedStream { stream_id, last, position, is_parked }))
        };
        rows.into_iter().filter_map(|row| applied(row).transpose()).collect()
    }

    /// The highest position of a last applied event below `below`; `None` without such an event.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn last_position(
        &mut self,
        ledger: &Ledger,
        below: Option<Position>,
    ) -> Result<Option<Position>, Error> {
        let sql =
            format!("SELECT MAX(position) FROM {} WHERE position < ?", ledger.streams_table());
        let read = query_scalar(AssertSqlSafe(sql))
            .bind(below.map_or(i64::MAX, Position::get))
            .fetch_one(&mut self.connection);
        let found: Option<u64> = within_minutes(read).await?;
        found.map(|number| ledger.progress.position(number)).transpose()
    }
}

/// A stream, its version, the id of the event with that version, whether it is parked, and the event's position.
type AppliedRow = (String, u64, Uuid, bool, Option<u64>);
