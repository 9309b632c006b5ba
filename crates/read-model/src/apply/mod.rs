//! Applies events to a read model. Effects and bookkeeping change in one transaction.

mod batch_run;
mod breaker;
mod conflict;
mod model;

use std::path::PathBuf;

use domain_events::{EventType, SchemaVersion, StoredEvent, StreamRange};
use projection::Statement;
use projection::plan::Verdict;

use self::batch_run::{BatchRun, Interruption};
pub use self::breaker::Breaker;
pub use self::conflict::park_conflicts;
pub use self::model::{Admitted, Definition, Files, ReadModel, load};
use crate::binding::Unbindable;
use crate::{Committed, Error, ParkKind, ParkedStream, Refusal, Session};

/// A batch that was applied.
pub struct Applied {
    /// The verdict on each event, in the order of the events.
    pub verdicts: Vec<Verdict>,
    /// The versions that are missing.
    pub gaps: Vec<StreamRange>,
    /// The streams that this batch has parked.
    pub parked: Vec<ParkedStream>,
    /// The proof of the commit.
    pub committed: Committed,
}

impl Applied {
    /// The number of events with this verdict.
    pub fn count(&self, wanted: Verdict) -> usize {
        self.verdicts.iter().filter(|verdict| **verdict == wanted).count()
    }
}

/// Why a batch was not applied. It has no effects.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// MySQL failed for a reason that no event causes. The session must be dropped.
    #[error(transparent)]
    Server(#[from] Error),
    /// The projection is paused.
    #[error("paused: {reason}")]
    Paused {
        /// The reason of the person or of the circuit breaker.
        reason: String,
    },
    /// A rebuild has put other tables in service. [`ReadModel::prepare`] must read them first.
    #[error("a rebuild has replaced the tables of the read model")]
    Replaced,
    /// The batch would park so many streams that the projection must be paused instead.
    #[error("{reason}")]
    Storm {
        /// The number of streams, and one of the causes.
        reason: String,
    },
}

/// Why an event cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{}:{line}:{column}: {error}", file.display())]
    Bind { file: PathBuf, line: u64, column: u64, error: Unbindable },
    #[error(transparent)]
    Refused(Refusal),
    #[error("{reason}")]
    Code { reason: String },
    #[error("schema version {schema_version} of {event_type} has no handler")]
    UnknownSchema { event_type: EventType, schema_version: SchemaVersion },
}

impl Reason {
    fn bind(statement: &Statement, error: Unbindable) -> Self {
        let Statement { file, line, column, .. } = statement;
        Self::Bind { file: file.to_path_buf(), line: *line, column: *column, error }
    }

    fn kind(&self) -> ParkKind {
        match self {
            Self::Bind { .. } => ParkKind::Parameter,
            Self::Refused(_) | Self::Code { .. } => ParkKind::Refused,
            Self::UnknownSchema { .. } => ParkKind::Schema,
        }
    }
}

/// Applies the events that are next in their streams, and commits. An event that cannot be applied parks
/// its stream.
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
    // Savepoints cost a round trip for each statement and are rarely needed, so the first attempt has none.
    let mut savepoints = false;
    loop {
        let mut batch = model.begin(session).await?;
        let mut run = BatchRun::of(model, events, savepoints);
        let plan = match run.fill(&mut batch, breaker).await {
            Ok(plan) => plan,
            Err(Interruption::Refused) => {
                debug_assert!(!savepoints, "a batch with savepoints undoes a refused statement");
                batch.rollback().await?;
                savepoints = true;
                continue;
            }
            Err(Interruption::Storm(reason)) => {
                batch.rollback().await?;
                return Err(ApplyError::Storm { reason });
            }
            Err(Interruption::Server(error)) => {
                // An error of the rollback would hide the cause. The caller drops the session anyway.
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

/// The result of [`apply_part`].
#[derive(Debug, Default)]
pub struct Part {
    /// The number of applied events.
    pub applied: usize,
    /// The stream that was parked, if any.
    pub parked: Option<ParkedStream>,
}

/// Applies events within an open batch and does not commit. An event that cannot be applied parks its
/// stream.
///
/// # Errors
///
/// When MySQL fails. The caller must roll the batch back.
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
                "a batch with savepoints undoes a refused statement, and Breaker::NONE never trips"
            )
        }
    }
}

#[cfg(test)]
mod tests;
