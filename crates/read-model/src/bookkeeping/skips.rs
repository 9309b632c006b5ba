//! Skipped events: those that a person has left out.
//!
//! The decision is about an event, not about tables. So it is stored beside the tables that a rebuild swaps,
//! and every batch honours it.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDateTime, Utc};
use domain_events::{EventId, StoredEvent, StreamId, StreamVersion};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use uuid::Uuid;

use crate::batching::quoted;
use crate::session::{from_row, within};
use crate::{Error, JobState, Ledger, ParkedStream, Session};

/// The skipped events of a projection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skips(HashMap<(StreamId, StreamVersion), EventId>);

impl Skips {
    /// Whether this event is left out. Another event with the same version is not.
    pub fn contains(&self, event: &StoredEvent) -> bool {
        // Most projections have none, and then nothing is cloned.
        !self.0.is_empty() && self.leave_out(&event.stream_id, event.version, event.event_id)
    }

    /// Whether the event that stopped a stream is left out.
    pub fn contains_parked(&self, parked: &ParkedStream) -> bool {
        self.leave_out(&parked.stream_id, parked.version, parked.event_id)
    }

    fn leave_out(&self, stream_id: &StreamId, version: StreamVersion, event_id: EventId) -> bool {
        self.0.get(&(stream_id.clone(), version)) == Some(&event_id)
    }
}

/// A skipped event, and who decided that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedEvent {
    /// The stream.
    pub stream_id: String,
    /// The version of the event.
    pub version: u64,
    /// The id of the event.
    pub event_id: String,
    /// Why it was left out.
    pub reason: String,
    /// Who decided: the person and the login of MySQL.
    pub login: String,
    /// When.
    pub skipped_at: DateTime<Utc>,
}

struct SkipRow {
    stream_id: String,
    version: u64,
    event_id: Uuid,
    reason: String,
    login: String,
    skipped_at: NaiveDateTime,
}

from_row!(SkipRow { stream_id, version, event_id, reason, login, skipped_at });

impl Ledger {
    pub(crate) async fn skips(&self, connection: &mut MySqlConnection) -> Result<Skips, Error> {
        let read = |row: &SkipRow| {
            let stream_id = StreamId::new(row.stream_id.as_str())?;
            let version = StreamVersion::new(i64::try_from(row.version).unwrap_or(-1))?;
            Ok(((stream_id, version), EventId::new(row.event_id)?))
        };
        let skip = |row: SkipRow| {
            read(&row).map_err(|source| Error::row("projector_skips", &row.stream_id, source))
        };
        let rows = self.skip_rows(connection).await?;
        rows.into_iter().map(skip).collect::<Result<_, _>>().map(Skips)
    }

    async fn skip_rows(&self, connection: &mut MySqlConnection) -> Result<Vec<SkipRow>, Error> {
        let read = query_as(
            "SELECT stream_id, version, event_id, reason, login, skipped_at FROM projector_skips
             WHERE projection = ? ORDER BY stream_id, version",
        )
        .bind(self.projection())
        .fetch_all(connection);
        within("reading the skipped events", read).await
    }

    pub(crate) async fn record_skip(
        &self,
        connection: &mut MySqlConnection,
        stream: &ParkedStream,
        reason: &str,
        actor: &str,
    ) -> Result<(), Error> {
        let read = query_scalar("SELECT state FROM projector_rebuilds WHERE projection = ?")
            .bind(self.projection())
            .fetch_optional(&mut *connection);
        let state: Option<String> = within("reading a rebuild", read).await?;
        let state = state.as_deref().and_then(JobState::parse);
        if state.is_some_and(JobState::is_unfinished) {
            return Err(Error::SkipDuringRebuild { projection: self.projection().to_owned() });
        }
        let skip = query(
            "REPLACE INTO projector_skips
                 (projection, stream_id, version, event_id, reason, login, skipped_at)
             VALUES (?, ?, ?, ?, ?, CONCAT(?, ' as ', USER()), UTC_TIMESTAMP(6))",
        )
        .bind(self.projection())
        .bind(stream.stream_id.as_str())
        .bind(stream.version.get())
        .bind(stream.event_id.uuid())
        .bind(reason)
        .bind(actor)
        .execute(connection);
        within("recording a skipped event", skip).await.map(drop)
    }
}

impl Session {
    /// The skipped events of a projection, by stream and version.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn skipped_events(&mut self, ledger: &Ledger) -> Result<Vec<SkippedEvent>, Error> {
        let rows = ledger.skip_rows(&mut self.connection).await?;
        let skipped = |row: SkipRow| SkippedEvent {
            stream_id: row.stream_id,
            version: row.version,
            event_id: row.event_id.to_string(),
            reason: row.reason,
            login: row.login,
            skipped_at: row.skipped_at.and_utc(),
        };
        Ok(rows.into_iter().map(skipped).collect())
    }

    /// The skipped events of a projection.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn skips(&mut self, ledger: &Ledger) -> Result<Skips, Error> {
        ledger.skips(&mut self.connection).await
    }

    /// Copies the skipped events of a projection from another database, so that tables that are built here
    /// leave out the same events.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn copy_skips(&mut self, ledger: &Ledger, from: &str) -> Result<(), Error> {
        let forget = query("DELETE FROM projector_skips WHERE projection = ?")
            .bind(ledger.projection())
            .execute(&mut self.connection);
        within("copying the skipped events", forget).await?;
        let sql = format!(
            "INSERT INTO projector_skips
                 (projection, stream_id, version, event_id, reason, login, skipped_at)
             SELECT projection, stream_id, version, event_id, reason, login, skipped_at
             FROM {}.projector_skips WHERE projection = ?",
            quoted(from)
        );
        let copy =
            query(AssertSqlSafe(sql)).bind(ledger.projection()).execute(&mut self.connection);
        within("copying the skipped events", copy).await.map(drop)
    }

    /// Whether a person has left out an event since the last rebuild was requested. The tables of an
    /// unfinished rebuild may then hold its effect.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn has_skipped_since_job(&mut self, ledger: &Ledger) -> Result<bool, Error> {
        let read = query_scalar(
            "SELECT EXISTS (SELECT 1 FROM projector_skips AS s
                            JOIN projector_rebuilds AS r ON r.projection = s.projection
                            WHERE s.projection = ? AND s.skipped_at >= r.started_at)",
        )
        .bind(ledger.projection())
        .fetch_one(&mut self.connection);
        within("reading the skipped events", read).await
    }
}
