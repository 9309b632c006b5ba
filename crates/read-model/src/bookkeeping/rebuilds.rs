//! The state of rebuilds: one row for each projection, of its last rebuild.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Serialize;
use sqlx::{query, query_as};

use crate::session::{from_row, within};
use crate::{Error, Ledger, Session};

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Somebody has asked for it.
    Planned,
    /// The history is being applied to the new tables.
    Building,
    /// And what came meanwhile.
    CatchingUp,
    /// The new tables take the place of the old ones.
    CuttingOver,
    /// They have.
    Done,
    /// The old ones take the place of the new ones.
    RollingBack,
    /// They have.
    RolledBack,
    /// The tables that are not in service are gone.
    OldDropped,
    /// Somebody gave it up.
    Cancelled,
    /// It cannot go on without a person.
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

    /// Its name in the table.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }

    /// Whether a rebuild is under way, or was interrupted.
    pub fn is_building(self) -> bool {
        matches!(self, Self::Planned | Self::Building | Self::CatchingUp | Self::CuttingOver)
    }

    /// Whether somebody has to go on with it.
    pub fn is_unfinished(self) -> bool {
        self.is_building() || self == Self::RollingBack
    }
}

/// How a rebuild was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Events a second at most; 0 for as many as it goes.
    pub throttle: u32,
    /// The lag of the live read model, in seconds, from which on the rebuild waits; 0 for none.
    pub max_lag: u32,
    /// Whether the new tables are put in service even if some streams are parked in them.
    pub allow_parked: bool,
}

/// How far the history is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// Up to here.
    pub position: i64,
    /// The head of the event store, as far as its order is decided.
    pub until: i64,
    /// Events applied by the process that is at it.
    pub events: u64,
    /// So many in a second.
    pub events_per_second: u64,
    /// Until the head is reached, as far as that can be foreseen.
    pub seconds_left: Option<u64>,
}

/// The last rebuild of a projection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// How far it is.
    pub state: JobState,
    /// From which files the new tables are built.
    #[serde(skip)]
    pub definition_hash: String,
    /// How it was asked for.
    #[serde(skip)]
    pub options: Options,
    /// How far the history is applied.
    #[serde(flatten)]
    pub progress: Progress,
    /// Where it runs, or ran.
    pub host: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was planned.
    pub started_at: DateTime<Utc>,
    /// When its state or progress was recorded last.
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
    /// The last rebuild of a projection.
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

    /// Plans a rebuild.
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

    /// Goes on with a rebuild that was interrupted, as it is asked for now.
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
        within("going on with a rebuild", adopt).await.map(drop)
    }

    /// Notes how far a rebuild is, unless it was cancelled meanwhile; says whether it was not.
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
        Ok(within("noting a rebuild", note).await?.rows_affected() > 0)
    }

    /// Notes how far the history is applied; says whether the rebuild was not cancelled meanwhile.
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
        Ok(within("noting progress", note).await?.rows_affected() > 0)
    }

    /// Cancels a rebuild that has not begun to cut over; says whether there was one.
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

    /// Makes batches look at which tables they meet, until [`super::Batch::next_generation`].
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn note_swapping(&mut self, ledger: &Ledger, swapping: bool) -> Result<(), Error> {
        let note = query("UPDATE projector_projections SET swapping = ? WHERE name = ?")
            .bind(swapping)
            .bind(ledger.projection())
            .execute(&mut self.connection);
        within("noting a swap", note).await.map(drop)
    }
}
