//! The state of rebuilds: one row for each projection, about its last rebuild.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Serialize;
use sqlx::{query, query_as};

use crate::session::{from_row, within};
use crate::{Error, Ledger, Session};

/// The state of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It has been requested.
    Planned,
    /// It is applying the history to the new tables.
    Building,
    /// It is applying the events that were appended since.
    CatchingUp,
    /// It is putting the new tables in service.
    CuttingOver,
    /// The new tables are in service.
    Done,
    /// It is putting the previous tables back in service.
    RollingBack,
    /// The previous tables are in service again.
    RolledBack,
    /// The tables that are not in service have been dropped.
    OldDropped,
    /// A person has cancelled it.
    Cancelled,
    /// It failed, and a person must decide.
    Failed,
}

impl JobState {
    const ALL: [(Self, &str); 10] = [
        (Self::Planned, "planned"),
        (Self::Building, "building"),
        (Self::CatchingUp, "catching_up"),
        (Self::CuttingOver, "cutting_over"),
        (Self::Done, "done"),
        (Self::RollingBack, "rolling_back"),
        (Self::RolledBack, "rolled_back"),
        (Self::OldDropped, "old_dropped"),
        (Self::Cancelled, "cancelled"),
        (Self::Failed, "failed"),
    ];

    /// The name in the table.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }

    /// Whether the rebuild is running, or was interrupted before the new tables were in service.
    pub fn is_building(self) -> bool {
        matches!(self, Self::Planned | Self::Building | Self::CatchingUp | Self::CuttingOver)
    }

    /// Whether a projector must continue it.
    pub fn is_unfinished(self) -> bool {
        self.is_building() || self == Self::RollingBack
    }
}

/// The options of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The most events per second; 0 for no limit.
    pub throttle: u32,
    /// The lag of the read model in service, in seconds, above which the rebuild waits; 0 for no limit.
    pub max_lag: u32,
    /// Whether the new tables may be put in service although some of their streams are parked.
    pub allow_parked: bool,
}

/// The progress of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// The position up to which events have been applied.
    pub position: i64,
    /// The last position of the event store whose order is final.
    pub until: i64,
    /// The number of events that the running process has applied.
    pub events: u64,
    /// The speed of that process.
    pub events_per_second: u64,
    /// The estimated time until `until` is reached, in seconds, if there is an estimate.
    pub seconds_left: Option<u64>,
}

/// The last rebuild of a projection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Its state.
    pub state: JobState,
    /// SHA-256 of the files from which the new tables are built.
    #[serde(skip)]
    pub definition_hash: String,
    /// Its options.
    #[serde(skip)]
    pub options: Options,
    /// Its progress.
    #[serde(flatten)]
    pub progress: Progress,
    /// The host and process id that runs it, or ran it last.
    pub host: String,
    /// The reason of its failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The time when it was planned.
    pub started_at: DateTime<Utc>,
    /// The time when its state or progress was last recorded.
    pub changed_at: DateTime<Utc>,
}

struct JobRow {
    state: String,
    definition_hash: String,
    throttle: u32,
    max_lag: u32,
    allow_parked: bool,
    host: String,
    position: u64,
    until_position: u64,
    events: u64,
    events_per_second: u64,
    seconds_left: Option<u64>,
    reason: Option<String>,
    started_at: NaiveDateTime,
    changed_at: NaiveDateTime,
}

from_row!(JobRow {
    state,
    definition_hash,
    throttle,
    max_lag,
    allow_parked,
    host,
    position,
    until_position,
    events,
    events_per_second,
    seconds_left,
    reason,
    started_at,
    changed_at,
});

impl JobRow {
    fn job(self) -> Result<Job, Error> {
        let Self { throttle, max_lag, allow_parked, .. } = self;
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let unknown = || Error::UnknownState { state: self.state.clone() };
        Ok(Job {
            state: JobState::parse(&self.state).ok_or_else(unknown)?,
            definition_hash: self.definition_hash,
            options: Options { throttle, max_lag, allow_parked },
            progress: Progress {
                position: signed(self.position),
                until: signed(self.until_position),
                events: self.events,
                events_per_second: self.events_per_second,
                seconds_left: self.seconds_left,
            },
            host: self.host,
            reason: self.reason,
            started_at: self.started_at.and_utc(),
            changed_at: self.changed_at.and_utc(),
        })
    }
}

impl Session {
    /// The last rebuild of a projection; `None` if there was none.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn job(&mut self, ledger: &Ledger) -> Result<Option<Job>, Error> {
        let read = query_as(
            "SELECT state, definition_hash, throttle, max_lag, allow_parked, host, position,
                    until_position, events, events_per_second, seconds_left, reason, started_at,
                    changed_at
             FROM projector_rebuilds WHERE projection = ?",
        )
        .bind(ledger.projection())
        .fetch_optional(&mut self.connection);
        let found: Option<JobRow> = within("reading a rebuild", read).await?;
        found.map(JobRow::job).transpose()
    }

    /// Records a new rebuild, and replaces the record of the last one.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn plan_job(
        &mut self,
        ledger: &Ledger,
        definition_hash: &str,
        options: Options,
    ) -> Result<(), Error> {
        let plan = query(
            "REPLACE INTO projector_rebuilds
                 (projection, state, definition_hash, throttle, max_lag, allow_parked, started_at,
                  changed_at)
             VALUES (?, 'planned', ?, ?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
        )
        .bind(ledger.projection())
        .bind(definition_hash)
        .bind(options.throttle)
        .bind(options.max_lag)
        .bind(options.allow_parked)
        .execute(&mut self.connection);
        within("planning a rebuild", plan).await.map(drop)
    }

    /// Continues an interrupted or failed rebuild with new options.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn adopt_job(&mut self, ledger: &Ledger, options: Options) -> Result<(), Error> {
        let adopt = query(
            "UPDATE projector_rebuilds
             SET throttle = ?, max_lag = ?, allow_parked = ?, reason = NULL,
                 state = IF(state = 'failed', 'building', state), changed_at = UTC_TIMESTAMP(6)
             WHERE projection = ?",
        )
        .bind(options.throttle)
        .bind(options.max_lag)
        .bind(options.allow_parked)
        .bind(ledger.projection())
        .execute(&mut self.connection);
        within("continuing a rebuild", adopt).await.map(drop)
    }

    /// Records the state of a rebuild. Returns false, and records nothing, if the rebuild has been
    /// cancelled.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn note_state(
        &mut self,
        ledger: &Ledger,
        state: JobState,
        host: &str,
        reason: Option<&str>,
    ) -> Result<bool, Error> {
        let note = query(
            "UPDATE projector_rebuilds
             SET state = ?, host = ?, reason = LEFT(?, 2000), changed_at = UTC_TIMESTAMP(6)
             WHERE projection = ? AND state <> 'cancelled'",
        )
        .bind(state.as_str())
        .bind(host)
        .bind(reason)
        .bind(ledger.projection())
        .execute(&mut self.connection);
        Ok(within("recording the state of a rebuild", note).await?.rows_affected() > 0)
    }

    /// Records the progress of a rebuild. Returns false, and records nothing, if the rebuild has been
    /// cancelled.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn note_progress(
        &mut self,
        ledger: &Ledger,
        progress: &Progress,
    ) -> Result<bool, Error> {
        let note = query(
            "UPDATE projector_rebuilds
             SET position = ?, until_position = ?, events = ?, events_per_second = ?,
                 seconds_left = ?, changed_at = UTC_TIMESTAMP(6)
             WHERE projection = ? AND state <> 'cancelled'",
        )
        .bind(progress.position)
        .bind(progress.until)
        .bind(progress.events)
        .bind(progress.events_per_second)
        .bind(progress.seconds_left)
        .bind(ledger.projection())
        .execute(&mut self.connection);
        Ok(within("recording progress", note).await?.rows_affected() > 0)
    }

    /// Cancels a rebuild before its cut-over. Returns false if there is none.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn cancel_job(&mut self, ledger: &Ledger) -> Result<bool, Error> {
        let cancel = query(
            "UPDATE projector_rebuilds
             SET state = 'cancelled', changed_at = UTC_TIMESTAMP(6)
             WHERE projection = ? AND state IN ('planned', 'building', 'catching_up', 'failed')",
        )
        .bind(ledger.projection())
        .execute(&mut self.connection);
        Ok(within("cancelling a rebuild", cancel).await?.rows_affected() > 0)
    }

    /// Sets whether a swap of the tables is imminent. While it is, every batch checks the epoch of its
    /// tables. It lasts until [`crate::Batch::next_generation`].
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn note_swapping(&mut self, ledger: &Ledger, swapping: bool) -> Result<(), Error> {
        let note = query("UPDATE projector_projections SET swapping = ? WHERE name = ?")
            .bind(swapping)
            .bind(ledger.projection())
            .execute(&mut self.connection);
        within("recording a swap", note).await.map(drop)
    }
}
