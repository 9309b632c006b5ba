//! Applying events to a read model: effects and bookkeeping in one transaction.

mod batch_run;
mod model;

use std::path::PathBuf;

use domain_events::{EventType, SchemaVersion, StoredEvent, StreamRange};
use projection::BindError;
use projection::plan::Verdict;

use self::batch_run::{BatchRun, Interruption};
pub use self::model::{Admitted, Definition, ReadModel, load};
use crate::{Committed, Error, ParkKind, ParkedStream, Refusal, Session};

/// When so many streams park that the projection itself must be wrong.
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    /// Streams parked within the window.
    pub streams: u64,
    /// The window, in seconds.
    pub window: u64,
    /// Streams parked in one batch, in percent of the streams in it; from ten streams on.
    pub percent: u64,
}

impl Breaker {
    /// Never pauses: for replays, which count parked streams at the end, and for commands of a person.
    pub const NONE: Self = Self { streams: u64::MAX, window: 1, percent: 100 };
}

/// A batch that was applied.
pub struct Applied {
    /// What was decided for each event, in the order in which the events were given.
    pub verdicts: Vec<Verdict>,
    /// The versions that are missing.
    pub gaps: Vec<StreamRange>,
    /// The streams that this batch has parked.
    pub parked: Vec<ParkedStream>,
    /// That it was committed.
    pub committed: Committed,
}

impl Applied {
    /// How many events have this verdict.
    pub fn count(&self, wanted: Verdict) -> usize {
        self.verdicts.iter().filter(|verdict| **verdict == wanted).count()
    }
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// MySQL failed; no event is to blame. The session must be dropped.
    #[error(transparent)]
    Server(#[from] Error),
    /// The projection is paused.
    #[error("paused: {reason}")]
    Paused {
        /// Why.
        reason: String,
    },
    /// A rebuild has put other tables in service: they must be read again, by [`ReadModel::prepare`].
    #[error("the read model was replaced by a rebuild")]
    Replaced,
    /// So many streams would be parked that the projection is to be paused instead.
    #[error("{reason}")]
    Storm {
        /// How many, and one of the causes.
        reason: String,
    },
}

/// Why an event cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{}:{line}:{column}: {error}", file.display())]
    Bind { file: PathBuf, line: u64, column: u64, error: BindError },
    #[error(transparent)]
    Refused(Refusal),
    #[error("{reason}")]
    Code { reason: String },
    #[error("no handler is for schema version {schema_version} of {event_type}")]
    UnknownSchema { event_type: EventType, schema_version: SchemaVersion },
}

impl Reason {
    fn kind(&self) -> ParkKind {
        match self {
            Self::Bind { .. } => ParkKind::Parameter,
            Self::Refused(_) | Self::Code { .. } => ParkKind::Refused,
            Self::UnknownSchema { .. } => ParkKind::Schema,
        }
    }
}

/// Applies the events whose turn has come, each stream in order, and commits. An event that cannot be
/// applied parks its stream.
///
/// # Errors
///
/// See [`ApplyError`].
pub async fn apply(
    session: &mut Session,
    model: &ReadModel,
    events: &[&StoredEvent],
    breaker: Breaker,
) -> Result<Applied, ApplyError> {
    // The first time without savepoints, since nearly always none is needed.
    let mut careful = false;
    loop {
        let mut batch = model.begin(session).await?;
        let mut run = BatchRun::of(model, events, careful);
        let plan = match run.fill(&mut batch, breaker).await {
            Ok(plan) => plan,
            Err(Interruption::Refused) => {
                debug_assert!(!careful, "a careful batch undoes a refused statement");
                batch.rollback().await?;
                careful = true;
                continue;
            }
            Err(Interruption::Storm(reason)) => {
                batch.rollback().await?;
                return Err(ApplyError::Storm { reason });
            }
            Err(Interruption::Server(error)) => {
                // The first error says more. The session goes anyway.
                drop(batch.rollback().await);
                return Err(error.into());
            }
        };
        let parked = run.parked(&plan);
        let gaps = plan.gaps.clone();
        let committed = batch.commit().await?;
        return Ok(Applied { verdicts: plan.into_verdicts(), gaps, parked, committed });
    }
}

/// What applying a part of a stream has come to.
#[derive(Debug, Default)]
pub struct Part {
    /// How many events were applied.
    pub applied: usize,
    /// The stream that cannot go on, if there is one.
    pub parked: Option<ParkedStream>,
}

/// Applies events within a batch that is already open, and parks a stream where it cannot go on.
///
/// # Errors
///
/// When MySQL fails; then the batch is to be rolled back.
pub async fn apply_part(
    batch: &mut Admitted<'_>,
    model: &ReadModel,
    events: &[&StoredEvent],
) -> Result<Part, Error> {
    let mut run = BatchRun::of(model, events, true);
    match run.fill(batch, Breaker::NONE).await {
        Ok(plan) => {
            let parked = run.parked(&plan).into_iter().next();
            Ok(Part { applied: plan.due().len(), parked })
        }
        Err(Interruption::Server(error)) => Err(error),
        Err(Interruption::Refused | Interruption::Storm(_)) => {
            unreachable!(
                "a careful batch undoes a refused statement, and nothing breaks this circuit"
            )
        }
    }
}

#[cfg(test)]
mod tests;
