//! What a comparison with the event store has found.

use std::fmt;

use read_model::Drift;
use serde::Serialize;

/// The result of a comparison.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// What was compared.
    pub(crate) scope: Scope,
    /// Rows that differ.
    pub(crate) drift: Vec<Drift>,
    /// Streams whose bookkeeping contradicts the event store.
    pub(crate) streams: Vec<Mismatch>,
}

impl Findings {
    /// Whether there is no difference.
    pub(crate) fn is_empty(&self) -> bool {
        self.drift.is_empty() && self.streams.is_empty()
    }
}

/// What was compared.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Scope {
    /// The number of streams that the read model has applied.
    pub(crate) streams: u64,
    /// How many of them were chosen at random; `None` for all.
    pub(crate) sampled: Option<u64>,
    /// The compared tables. A sample leaves out tables that no handler writes.
    pub(crate) tables: Vec<String>,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, sampled, tables } = self;
        let tables = tables.join(", ");
        match sampled {
            None => write!(f, "compared: all rows of {tables}"),
            Some(sampled) => {
                write!(f, "compared: the rows of {sampled} of {streams} streams in {tables}")
            }
        }
    }
}

/// A stream whose bookkeeping contradicts the event store.
#[derive(Debug, Serialize)]
pub(crate) struct Mismatch {
    pub(super) stream_id: String,
    /// The last version that was applied.
    pub(super) applied: i64,
    pub(super) kind: MismatchKind,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MismatchKind {
    /// The event store does not have the last applied event.
    NotStored,
    /// The event store has another event with that version.
    OtherEvent,
    /// The event store has later events before the checkpoint that were not applied.
    Lagging,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream_id, applied, kind } = self;
        match kind {
            MismatchKind::NotStored => write!(
                f,
                "stream {stream_id}: version {applied} was applied, but the event store does not have it; \
                 perhaps an older event store was restored"
            ),
            MismatchKind::OtherEvent => write!(
                f,
                "stream {stream_id}: version {applied} was applied from another event than the event \
                 store has"
            ),
            MismatchKind::Lagging => write!(
                f,
                "stream {stream_id}: version {applied} was the last to be applied, but the event store has \
                 later events before the checkpoint"
            ),
        }
    }
}
