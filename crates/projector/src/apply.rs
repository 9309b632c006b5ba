//! Applying events to a read model: effects and bookkeeping in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use chrono::Utc;
use domain_events::{Event, EventId, EventType, SchemaVersion, StreamId};
use event_store::Wanted;

use crate::code::{CodeError, RustProjection, ServerError, Tables};
use crate::forms::Forms;
use crate::mysql::{
    self, Batch, Committed, Gate, Ledger, ParkKind, ParkedStream, Refusal, Row, Session, SetForm,
};
use crate::projection::{BindError, Handler, Lookup, Projection, Value};
use crate::schedule::{Task, schedule};
use crate::sequence::{Plan, Verdict, plan};

/// A set is not longer than this, in bytes of JSON; the server limits a packet.
const SET_BYTES: usize = 4 << 20;

/// A projection and its bookkeeping.
pub(crate) struct ReadModel {
    pub(crate) projection: Projection,
    pub(crate) ledger: Ledger,
    forms: RwLock<Arc<Forms>>,
    /// Which tables these are.
    generation: AtomicU32,
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
            generation: AtomicU32::default(),
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
        let generation = session.generation(&self.ledger).await?;
        self.generation.store(generation, Ordering::Relaxed);
        let forms = Arc::new(Forms::read(session, &self.projection).await?);
        *self.forms.write().unwrap_or_else(PoisonError::into_inner) = forms;
        Ok(())
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
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
        let barred = match gate {
            Gate::Paused { reason } => Some(ApplyError::Paused { reason }),
            Gate::Open { generation } if generation != model.generation() => {
                Some(ApplyError::Replaced)
            }
            Gate::Open { .. } => None,
        };
        if let Some(barred) = barred {
            batch.rollback().await?;
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

/// What keeps a batch from being committed.
enum Interruption {
    /// A statement was refused, and it is not known for which event.
    Refused,
    Storm(String),
    Server(mysql::Error),
}

impl From<mysql::Error> for Interruption {
    fn from(error: mysql::Error) -> Self {
        Self::Server(error)
    }
}

/// What is done with an event.
#[derive(Clone, Copy)]
enum Action<'w> {
    Sql(&'w Arc<Handler>),
    Code(&'w dyn RustProjection),
}

impl Action<'_> {
    /// The forms of its statements, if it can be part of a set.
    fn forms<'f>(&self, forms: &'f Forms) -> Option<Vec<&'f SetForm>> {
        match self {
            Self::Sql(handler) => forms.of(handler).ok(),
            Self::Code(_) => None,
        }
    }
}

/// An event with what its handler needs.
struct Bound<'w> {
    index: usize,
    action: Action<'w>,
    /// For each statement.
    values: Vec<Vec<Value>>,
    /// For each statement, if the event can be part of a set.
    rows: Option<Vec<Row>>,
}

/// What events must have in common to be one set.
#[derive(PartialEq, Eq, Hash)]
enum Alike {
    /// Their handler.
    Handler(*const Handler),
    /// The statement that stands for their only ones.
    Statement(usize),
}

/// A batch being applied.
struct Work<'w> {
    model: &'w ReadModel,
    forms: &'w Forms,
    events: &'w [&'w Event],
    careful: bool,
    /// The events that cannot be applied.
    faults: BTreeMap<usize, Reason>,
}

impl<'w> Work<'w> {
    async fn fill(
        &mut self,
        batch: &mut Batch<'_>,
        breaker: Breaker,
    ) -> Result<Plan<'w>, Interruption> {
        // Sorted, so that two batches lock the streams they share in one order.
        let streams: BTreeSet<&StreamId> =
            self.events.iter().filter_map(|event| Some(event.place()?.0)).collect();
        let streams: Vec<&StreamId> = streams.into_iter().collect();
        let known = batch.lock(&streams, &self.unversioned()).await?;
        let mut plan = plan(&known, self.events);
        let bound = self.bind(&mut plan);
        self.run(batch, &mut plan, &bound).await?;
        let parked = self.parked(&plan);
        if !parked.is_empty() {
            self.doubt(batch, &plan, &parked).await?;
            let recently = batch.recently_parked(breaker.window).await?;
            storm(breaker, &parked, recently, streams.len())?;
        }
        batch.advance(&plan.steps).await?;
        batch.park(&parked).await?;
        let applied = plan.apply.iter().map(|index| self.events[*index]);
        let noted: Vec<EventId> =
            applied.filter(|event| event.place().is_none()).map(|event| event.event_id).collect();
        batch.note(&noted).await?;
        Ok(plan)
    }

    fn unversioned(&self) -> Vec<EventId> {
        let events = self.events.iter().filter(|event| event.place().is_none());
        events.map(|event| event.event_id).collect()
    }

    /// Finds handlers and their values; what can be said without MySQL is said here, for all events.
    fn bind(&mut self, plan: &mut Plan<'w>) -> Vec<Bound<'w>> {
        let mut bound = Vec::new();
        for index in plan.apply.clone() {
            if plan.verdicts[index] != Verdict::Apply {
                continue;
            }
            match self.bind_one(index) {
                Ok(found) => bound.extend(found),
                Err(reason) => self.refuse(index, reason, plan),
            }
        }
        bound
    }

    fn bind_one(&self, index: usize) -> Result<Option<Bound<'w>>, Reason> {
        let event = self.events[index];
        let (event_type, schema_version) = (&event.event_type, event.schema_version);
        if let Some(code) = &self.model.projection.code {
            let action = Action::Code(&**code);
            return Ok(Some(Bound { index, action, values: Vec::new(), rows: None }));
        }
        let handler = match self.model.projection.lookup(event_type, schema_version) {
            Lookup::Found(handler) => handler,
            Lookup::Unhandled => return Ok(None),
            Lookup::UnknownSchema => {
                let event_type = event_type.clone();
                return Err(Reason::UnknownSchema { event_type, schema_version });
            }
        };
        let mut values = Vec::new();
        for statement in &handler.statements {
            values.push(statement.bind(event).map_err(|error| Reason::Bind {
                file: statement.file.to_path_buf(),
                line: statement.line,
                column: statement.column,
                error,
            })?);
        }
        let action = Action::Sql(handler);
        let rows = action.forms(self.forms).and_then(|forms| {
            forms.iter().zip(&values).map(|(form, values)| form.row(values)).collect()
        });
        Ok(Some(Bound { index, action, values, rows }))
    }

    fn refuse(&mut self, index: usize, reason: Reason, plan: &mut Plan<'w>) {
        plan.refuse(index, self.events);
        self.faults.insert(index, reason);
    }

    /// Runs the handlers.
    async fn run(
        &mut self,
        batch: &mut Batch<'_>,
        plan: &mut Plan<'w>,
        bound: &[Bound<'w>],
    ) -> Result<(), Interruption> {
        for group in schedule(&self.tasks(bound)) {
            let mut group: Vec<&Bound<'w>> = group.into_iter().map(|task| &bound[task]).collect();
            group.retain(|bound| plan.verdicts[bound.index] == Verdict::Apply);
            let many = group.len() > 1;
            #[cfg(test)]
            let many = many && !self.model.one_by_one;
            if many && self.run_set(batch, &group).await? {
                continue;
            }
            for bound in group {
                if plan.verdicts[bound.index] == Verdict::Apply
                    && let Err(reason) = self.run_one(batch, bound).await?
                {
                    self.refuse(bound.index, reason, plan);
                }
            }
        }
        Ok(())
    }

    fn tasks(&self, bound: &[Bound<'w>]) -> Vec<Task> {
        let mut sets: HashMap<Alike, usize> = HashMap::new();
        let mut tasks: Vec<Task> = Vec::with_capacity(bound.len());
        for (index, one) in bound.iter().enumerate() {
            let place = self.events[one.index].place().map(|(stream_id, _)| stream_id);
            let before =
                index.checked_sub(1).and_then(|index| self.events[bound[index].index].place());
            let goes_on = place.is_some() && before.map(|(stream_id, _)| stream_id) == place;
            let stream = tasks.last().map_or(0, |task| task.stream + usize::from(!goes_on));
            let next = sets.len();
            let forms = one.action.forms(self.forms).unwrap_or_default();
            let alike = match (&*forms, one.action) {
                ([form], Action::Sql(handler)) => match form.merges_as() {
                    Some(statement) => Some(Alike::Statement(statement)),
                    None => Some(Alike::Handler(Arc::as_ptr(handler))),
                },
                (_, Action::Sql(handler)) => Some(Alike::Handler(Arc::as_ptr(handler))),
                (_, Action::Code(_)) => None,
            };
            let alike = alike.filter(|_| one.rows.is_some());
            let set = alike.map(|alike| *sets.entry(alike).or_insert(next));
            let keeps_order = forms.iter().all(|form| form.keeps_order());
            tasks.push(Task { stream, set, keeps_order });
        }
        tasks
    }

    /// Applies a group at once; says whether that worked.
    async fn run_set(
        &mut self,
        batch: &mut Batch<'_>,
        group: &[&Bound<'w>],
    ) -> Result<bool, Interruption> {
        if self.careful {
            batch.save().await?;
        }
        match self.run_parts(batch, group).await {
            Ok(()) => Ok(true),
            Err(mysql::Error::Refused(_)) if self.careful => {
                batch.undo().await?;
                Ok(false)
            }
            Err(mysql::Error::Refused(_)) => Err(Interruption::Refused),
            Err(other) => Err(other.into()),
        }
    }

    /// A group in as few parts as possible: events that meet in a row may have to follow each other.
    async fn run_parts(
        &self,
        batch: &mut Batch<'_>,
        group: &[&Bound<'w>],
    ) -> Result<(), mysql::Error> {
        let Action::Sql(handler) = group[0].action else { return Ok(()) };
        let Ok(forms) = self.forms.of(handler) else { return Ok(()) };
        // Of different handlers, only some may ask for it; then it is looked at one by one.
        let finds: Vec<bool> = (0..forms.len())
            .map(|number| {
                let mut all = group.iter().filter_map(|bound| bound.action.forms(self.forms));
                all.any(|forms| forms[number].finds_one)
            })
            .collect();
        let rows: Vec<&Vec<Row>> = group.iter().filter_map(|bound| bound.rows.as_ref()).collect();
        let mut rest = &rows[..];
        while !rest.is_empty() {
            let mut part = &rest[..within_bytes(rest)];
            for (number, form) in forms.iter().enumerate() {
                let column: Vec<&Row> = part.iter().map(|rows| &rows[number]).collect();
                part = &part[..form.gather(&column).1];
            }
            for (number, form) in forms.iter().enumerate() {
                let column: Vec<&Row> = part.iter().map(|rows| &rows[number]).collect();
                let statement = &handler.statements[number];
                let rows = form.gather(&column).0;
                batch.execute_set(statement, form, rows, finds[number]).await?;
            }
            rest = &rest[part.len()..];
        }
        Ok(())
    }

    /// Applies one event; gives why it cannot be.
    async fn run_one(
        &mut self,
        batch: &mut Batch<'_>,
        bound: &Bound<'w>,
    ) -> Result<Result<(), Reason>, Interruption> {
        if self.careful {
            batch.save().await?;
        }
        let handler = match bound.action {
            Action::Sql(handler) => handler,
            Action::Code(code) => {
                let result = code.apply(self.events[bound.index], &mut Tables::of(batch)).await;
                return match result {
                    Ok(()) => Ok(Ok(())),
                    Err(CodeError::Refused(reason)) if self.careful => {
                        batch.undo().await?;
                        Ok(Err(Reason::Code { reason }))
                    }
                    Err(CodeError::Refused(_)) => Err(Interruption::Refused),
                    Err(CodeError::Server(ServerError(error))) => Err(error.into()),
                };
            }
        };
        for (statement, values) in handler.statements.iter().zip(&bound.values) {
            match batch.execute(statement, values).await {
                Ok(()) => {}
                Err(mysql::Error::Refused(refusal)) if self.careful => {
                    batch.undo().await?;
                    return Ok(Err(Reason::Refused(refusal)));
                }
                Err(mysql::Error::Refused(_)) => return Err(Interruption::Refused),
                Err(other) => return Err(other.into()),
            }
        }
        Ok(Ok(()))
    }

    /// A new stream has no row that could be locked: another instance may have begun it meanwhile, and
    /// that is why its first event was refused here.
    async fn doubt(
        &self,
        batch: &mut Batch<'_>,
        plan: &Plan<'w>,
        parked: &[ParkedStream],
    ) -> Result<(), Interruption> {
        let is_new = |stream: &&ParkedStream| {
            plan.steps
                .iter()
                .any(|step| *step.stream_id == stream.stream_id && step.from.last.is_none())
        };
        let mut new: Vec<&StreamId> =
            parked.iter().filter(is_new).map(|stream| &stream.stream_id).collect();
        new.sort_unstable();
        let known = batch.lock(&new, &[]).await?;
        if known.heads.values().any(|head| head.last.is_some()) {
            return Err(mysql::Error::Overtaken.into());
        }
        Ok(())
    }

    /// The streams that cannot go on, with their reasons.
    fn parked(&self, plan: &Plan<'w>) -> Vec<ParkedStream> {
        let mut parked = Vec::new();
        for (index, verdict) in plan.verdicts.iter().enumerate() {
            let event = self.events[index];
            let Some((stream_id, version)) = event.place() else { continue };
            let (kind, reason, applied_event_id) = match (verdict, self.faults.get(&index)) {
                (Verdict::Refused, Some(reason)) => (reason.kind(), reason.to_string(), None),
                (Verdict::Conflict { applied }, _) => {
                    let reason = format!(
                        "another event has version {version}: {applied} was applied, and {} came",
                        event.event_id
                    );
                    (ParkKind::Conflict, reason, Some(applied.uuid()))
                }
                _ => continue,
            };
            parked.push(ParkedStream {
                stream_id: stream_id.clone(),
                version,
                event_id: event.event_id,
                event_type: event.event_type.clone(),
                position: event.position(),
                kind,
                reason,
                applied_event_id,
                attempts: 1,
                parked_at: Utc::now(),
            });
        }
        parked
    }

    fn unversioned_faults(&self) -> HashMap<usize, String> {
        let faults = self.faults.iter();
        faults
            .filter(|(index, _)| self.events[**index].place().is_none())
            .map(|(index, reason)| (*index, reason.to_string()))
            .collect()
    }
}

/// How many rows, from the first on, are one set.
fn within_bytes(rows: &[&Vec<Row>]) -> usize {
    let mut bytes = 0;
    let fits = |rows: &&&Vec<Row>| {
        bytes += rows.iter().flatten().map(bytes_of).sum::<usize>();
        bytes <= SET_BYTES
    };
    rows.iter().take_while(fits).count().max(1)
}

fn bytes_of(value: &serde_json::Value) -> usize {
    value.as_str().map_or(8, str::len)
}

fn storm(
    breaker: Breaker,
    parked: &[ParkedStream],
    recently: u64,
    streams: usize,
) -> Result<(), Interruption> {
    let now = parked.len() as u64;
    let too_many = recently.saturating_add(now) > breaker.streams;
    let too_large_a_part = now >= 10 && now * 100 > breaker.percent * streams as u64;
    if !too_many && !too_large_a_part {
        return Ok(());
    }
    let what = if too_many {
        format!("{} streams could not go on within {} s", recently + now, breaker.window)
    } else {
        format!("{now} of {streams} streams could not go on")
    };
    let ParkedStream { event_id, stream_id, version, reason, .. } = &parked[0];
    Err(Interruption::Storm(format!(
        "{what}; one of them {stream_id}, at event {event_id}, version {version}: {reason}"
    )))
}

#[cfg(test)]
mod tests;
