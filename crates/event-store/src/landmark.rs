//! What shows that the event store still has the history that a reader has applied.
//!
//! An asynchronous failover, a restored backup or a crash with `synchronous_commit = off` takes events away that
//! readers have seen, and new events get their positions and versions. Only the ids of events show that. They
//! need to be compared after such an incident only, and each begins with a new run of the server.

use domain_events::{EventId, Landmark, Position};
use sqlx::query;
use uuid::Uuid;

use crate::session::Mode;
use crate::{Error, Session};

/// What the event store has at a landmark and before a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surroundings {
    /// Identifies the run of the server: another one after a restart, a crash or a failover.
    pub server_run: Uuid,
    /// Whether the known landmark is where it was; true without one.
    pub has_known: bool,
    /// The last event at or before the position; `None` if there is none.
    pub last: Option<Landmark>,
}

impl Session {
    /// Looks for a known landmark, and for the last event at or before a position.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn surroundings(
        &mut self,
        known: Option<Landmark>,
        position: Position,
    ) -> Result<Surroundings, Error> {
        // Any role may read both times. A crash keeps the postmaster, and resets all statistics.
        let query = query(
            "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
                    (SELECT coalesce(extract(epoch FROM stats_reset) * 1000000, 0)::bigint
                     FROM pg_stat_archiver),
                    (SELECT event_id FROM events WHERE position = $1),
                    last.position, last.event_id
             FROM (SELECT 1) AS always
             LEFT JOIN LATERAL (
                 SELECT position, event_id FROM events
                 WHERE position <= $2 ORDER BY position DESC LIMIT 1
             ) AS last ON true",
        )
        .bind(known.map(|known| known.position.get()))
        .bind(position.get());
        let rows: Vec<Row> = self.run(Mode::Read, "looking for a landmark", query).await?;
        let (started, reset, found, last, last_id) = rows.into_iter().next().unwrap_or_default();
        let landmark = |(position, event_id)| {
            Ok(Landmark { position: Position::new(position)?, event_id: EventId::new(event_id)? })
        };
        let last = last.zip(last_id).map(landmark).transpose().map_err(|source| Error::Row {
            table: "events",
            id: position.get(),
            source,
        })?;
        Ok(Surroundings {
            server_run: Uuid::from_u64_pair(started.cast_unsigned(), reset.cast_unsigned()),
            has_known: known.is_none_or(|known| found == Some(known.event_id.uuid())),
            last,
        })
    }
}

/// The times of the run, the event at the landmark, and the last event.
type Row = (i64, i64, Option<Uuid>, Option<i64>, Option<Uuid>);
