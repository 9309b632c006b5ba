//! The facts of `projector status`, as `--json` prints them.

use chrono::{DateTime, Utc};
use daemon::cause::Cause;
use event_store::{OpenTransaction, Relay};
use read_model::{Blocker, Instance, Job, ReadModel, Report};
use serde::Serialize;

use crate::history::Lag;

/// Everything that is known.
#[derive(Serialize)]
pub(super) struct Facts {
    /// Whether events are published; absent if PostgreSQL gave no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publishing: Option<Published>,
    pub(super) projections: Vec<Found>,
    /// Projectors that have reported within the last seconds.
    pub(super) projectors: Vec<Report>,
    /// The parts without an answer, with the reasons.
    pub(super) unknown: Vec<String>,
}

/// Whether events are published.
#[derive(Serialize)]
pub(super) struct Published {
    /// Events that wait for a relay, counted up to 100,000.
    pub(super) pending: i64,
    /// Events of streams that the relay holds, counted up to 100,000.
    pub(super) held: i64,
    pub(super) oldest_age_seconds: f64,
    pub(super) relays: Vec<Relay>,
    /// Open transactions that keep the event store from being read in order.
    pub(super) open_writers: Vec<OpenTransaction>,
    #[serde(skip)]
    pub(super) cause: Option<Cause>,
}

/// The state of one projection.
#[derive(Serialize)]
pub(super) struct Found {
    pub(super) projection: String,
    pub(super) state: Condition,
    /// Why it is paused or not migrated, or why its state is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// Since when it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused_since: Option<DateTime<Utc>>,
    /// Why the files at hand are not applied, if others are in service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) files: Option<String>,
    /// The position up to which every event is known to be applied or parked.
    pub(super) checkpoint: Option<i64>,
    /// Events that are stored and not applied, without parked streams; absent if unknown.
    #[serde(flatten)]
    pub(super) lag: Option<Lag>,
    pub(super) parked: i64,
    pub(super) conflicts: i64,
    /// Messages in the dead-letter queue; `null` if unknown.
    pub(super) dead_letters: Option<u32>,
    /// The number of events that were lost on the way and read from the event store.
    pub(super) healed: u64,
    pub(super) partitions: u16,
    pub(super) queues: Vec<FoundQueue>,
    /// The instances that follow its queues.
    pub(super) instances: Vec<FoundInstance>,
    /// Sessions of MySQL for whose locks others wait, or that keep a rebuild from its swap.
    pub(super) blockers: Vec<Blocker>,
    /// Whether the login may not see locks.
    pub(super) locks_hidden: bool,
    /// The last rebuild.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rebuild: Option<Job>,
}

/// A queue of a projection.
#[derive(Serialize)]
pub(super) struct FoundQueue {
    pub(super) name: String,
    /// Messages that wait for delivery; `null` if the queue does not exist.
    pub(super) ready: Option<u32>,
    /// Messages that instances have received and not settled.
    pub(super) unsettled: u64,
}

/// An instance that follows the queues of a projection.
#[derive(Serialize)]
pub(super) struct FoundInstance {
    /// `partitions` are those that deliver to it now.
    #[serde(flatten)]
    pub(super) instance: Instance,
    /// The partitions that it serves.
    pub(super) assigned: Vec<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Condition {
    /// MySQL gave no answer.
    Unknown,
    NotMigrated,
    Paused,
    /// Paused, because the event store has lost applied events.
    Diverged,
    /// No projector runs it.
    NoInstance,
    /// A projector runs it, and does not follow its queues.
    Waiting,
    ApplyingHistory,
    Following,
}

impl Found {
    pub(super) fn new(model: &ReadModel) -> Self {
        Self {
            projection: model.name().to_owned(),
            state: Condition::Unknown,
            reason: None,
            paused_since: None,
            files: None,
            checkpoint: None,
            lag: None,
            parked: 0,
            conflicts: 0,
            dead_letters: None,
            healed: 0,
            partitions: model.projection.partitions,
            queues: Vec::new(),
            instances: Vec::new(),
            blockers: Vec::new(),
            locks_hidden: false,
            rebuild: None,
        }
    }
}
