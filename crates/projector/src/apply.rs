//! Applying events to a read model: effects and bookkeeping in one transaction.

mod work;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use domain_events::{Event, EventType, SchemaVersion};
use event_store::Wanted;

use self::work::{Interruption, Work};
use crate::forms::Forms;
use crate::mysql::{
    self, Batch, Committed, Gate, InService, Ledger, ParkKind, ParkedStream, Refusal, Session,
};
use crate::projection::{BindError, Projection};
use crate::sequence::{Plan, Verdict};

/// A projection and its bookkeeping.
pub(crate) struct ReadModel {
    pub(crate) projection: Projection,
    pub(crate) ledger: Ledger,
    forms: RwLock<Arc<Forms>>,
    /// Which tables are in service, as they were looked at last.
    in_service: RwLock<Option<InService>>,
    first_generation: OnceLock<u32>,
    /// Whether the tables in service were built from other files.
    is_changed: AtomicBool,
    /// And put in service since this instance started.
    is_outdated: AtomicBool,
    /// To compare sets with what they stand for.
    #[cfg(test)]
    one_by_one: bool,
}

impl ReadModel {
    pub(crate) fn new(projection: Projection) -> Self {
        let ledger = Ledger::of(&projection.name);
        Self {
            projection,
            ledger,
            forms: RwLock::default(),
            in_service: RwLock::default(),
            first_generation: OnceLock::new(),
            is_changed: AtomicBool::default(),
            is_outdated: AtomicBool::default(),
            #[cfg(test)]
            one_by_one: false,
        }
    }

    /// The name of the projection.
    pub(crate) fn name(&self) -> &str {
        &self.projection.name
    }

    /// Looks at the tables, to see which handlers can run for many events at once. Until then none do.
    pub(crate) async fn prepare(&self, session: &mut Session) -> Result<(), mysql::Error> {
        // First: if the tables are replaced in between, they are looked at again.
        let found = session.in_service(&self.ledger).await?;
        let changed =
            found.built_from.as_ref().is_some_and(|hash| *hash != self.projection.definition_hash);
        let replaced = *self.first_generation.get_or_init(|| found.generation) != found.generation;
        self.is_changed.store(changed, Ordering::Relaxed);
        self.is_outdated.store(changed && replaced, Ordering::Relaxed);
        *self.in_service.write().unwrap_or_else(PoisonError::into_inner) = Some(found);
        let forms = Arc::new(Forms::read(session, &self.projection).await?);
        *self.forms.write().unwrap_or_else(PoisonError::into_inner) = forms;
        Ok(())
    }

    /// Lets a batch go on, whether the projection is paused or not, if these are the tables that the
    /// handlers are for.
    pub(crate) async fn admit(&self, batch: &mut Batch<'_>, gate: &Gate) -> Result<(), ApplyError> {
        let Gate::Open { generation, swapping } = *gate else { return Ok(()) };
        let known = self.in_service.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(known) = known.filter(|it| it.generation == generation && !self.is_outdated())
        else {
            return Err(ApplyError::Replaced);
        };
        if swapping && batch.epoch().await? != known.epoch {
            return Err(ApplyError::Replaced);
        }
        Ok(())
    }

    /// Whether the tables in service were built from other files than this instance has.
    pub(crate) fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Relaxed)
    }

    /// Whether a rebuild has put such tables in service since this instance started. Then its handlers
    /// are those of before, and it must not apply anything.
    pub(crate) fn is_outdated(&self) -> bool {
        self.is_outdated.load(Ordering::Relaxed)
    }

    pub(crate) fn forms(&self) -> Arc<Forms> {
        Arc::clone(&self.forms.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When so many streams park that the projection itself must be wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Breaker {
    /// Streams parked within the window.
    pub(crate) streams: u64,
    /// The window, in seconds.
    pub(crate) window: u64,
    /// Streams parked in one batch, as a part of those in it; from ten on.
    pub(crate) percent: u64,
}

/// A batch that was applied.
pub(crate) struct Applied {
    /// What was decided for each event.
    pub(crate) verdicts: Vec<Verdict>,
    /// The versions that are missing.
    pub(crate) gaps: Vec<Wanted>,
    /// The streams that cannot go on, from now on.
    pub(crate) parked: Vec<ParkedStream>,
    /// Why events without a stream cannot be applied.
    pub(crate) refused: HashMap<usize, String>,
    /// That it was committed.
    pub(crate) committed: Committed,
}

impl Applied {
    /// How many events have this verdict.
    pub(crate) fn count(&self, wanted: impl Fn(Verdict) -> bool) -> usize {
        self.verdicts.iter().filter(|verdict| wanted(**verdict)).count()
    }
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// MySQL let us down; no event is to blame. The session must be dropped.
    #[error(transparent)]
    Server(#[from] mysql::Error),
    /// The projection is paused.
    #[error("paused: {reason}")]
    Paused {
        /// Why.
        reason: String,
    },
    /// Other tables are in service: they must be looked at again.
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
pub(crate) async fn apply(
    session: &mut Session,
    model: &ReadModel,
    events: &[&Event],
    breaker: Breaker,
) -> Result<Applied, ApplyError> {
    let forms = model.forms();
    // The first time without places to go back to, since nearly always none is needed.
    let mut careful = false;
    loop {
        let (mut batch, gate) = session.begin(&model.ledger, forms.passage()).await?;
        if let Gate::Paused { reason } = gate {
            batch.rollback().await?;
            return Err(ApplyError::Paused { reason });
        }
        if let Err(barred) = model.admit(&mut batch, &gate).await {
            // The first error tells more; after one of the server the session goes anyway.
            drop(batch.rollback().await);
            return Err(barred);
        }
        let mut work = Work { model, forms: &forms, events, careful, faults: BTreeMap::new() };
        let plan = match work.fill(&mut batch, breaker).await {
            Ok(plan) => plan,
            Err(Interruption::Refused) if !careful => {
                batch.rollback().await?;
                careful = true;
                continue;
            }
            Err(Interruption::Refused) => unreachable!("a careful batch undoes what is refused"),
            Err(Interruption::Storm(reason)) => {
                batch.rollback().await?;
                return Err(ApplyError::Storm { reason });
            }
            Err(Interruption::Server(error)) => {
                // The first error tells more; the session goes anyway.
                drop(batch.rollback().await);
                return Err(error.into());
            }
        };
        let parked = work.parked(&plan);
        let refused = work.unversioned_faults();
        let Plan { verdicts, gaps, .. } = plan;
        let committed = batch.commit().await?;
        return Ok(Applied { verdicts, gaps, parked, refused, committed });
    }
}

/// What became of one part of a stream that is folded again.
pub(crate) struct Part {
    /// How many events were applied.
    pub(crate) applied: usize,
    /// Where it stopped.
    pub(crate) parked: Option<ParkedStream>,
}

/// Applies events of one stream within a batch that is already open, and parks it again where it
/// cannot go on.
///
/// # Errors
///
/// With what MySQL says; then the batch is to be rolled back.
pub(crate) async fn apply_part(
    batch: &mut Batch<'_>,
    model: &ReadModel,
    events: &[&Event],
) -> Result<Part, ApplyError> {
    let forms = model.forms();
    let mut work = Work { model, forms: &forms, events, careful: true, faults: BTreeMap::new() };
    // A person has asked for it.
    let breaker = Breaker { streams: u64::MAX, window: 1, percent: 100 };
    match work.fill(batch, breaker).await {
        Ok(plan) => {
            let parked = work.parked(&plan).into_iter().next();
            Ok(Part { applied: plan.apply.len(), parked })
        }
        Err(Interruption::Server(error)) => Err(error.into()),
        Err(Interruption::Storm(reason)) => Err(ApplyError::Storm { reason }),
        Err(Interruption::Refused) => unreachable!("a careful batch undoes what is refused"),
    }
}

#[cfg(test)]
mod tests;
