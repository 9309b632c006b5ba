//! One batch: what its events need, in which groups they run, and which of them cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::Utc;
use domain_events::{StoredEvent, StreamId};
use projection::plan::{Plan, Slot, Task, Verdict, schedule};
use projection::{Handler, Lookup, Value};

use super::{Admitted, Breaker, ReadModel, Reason};
use crate::batching::{Forms, Row, SetForm};
use crate::rust_projection::{CodeError, RustProjection, ServerError, Tables};
use crate::{Error, ParkKind, ParkedStream};

/// A set is not longer than this, in bytes of JSON; the server limits a packet.
const SET_BYTES: usize = 4 << 20;

/// What keeps a batch from being committed.
pub(crate) enum Interruption {
    /// A statement was refused, and it is not known for which event.
    Refused,
    Storm(String),
    Server(Error),
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

/// What became of one event.
enum Ran {
    Applied,
    Refused(Reason),
}

/// What applies an event.
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
    slot: Slot,
    stream_id: &'w StreamId,
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
pub(super) struct BatchRun<'w> {
    model: &'w ReadModel,
    forms: Arc<Forms>,
    events: &'w [&'w StoredEvent],
    /// Whether each statement is preceded by a savepoint, so that a refused event can be undone alone.
    careful: bool,
    /// For each stream that cannot go on, the event that stopped it.
    faults: BTreeMap<&'w StreamId, Reason>,
}

impl<'w> BatchRun<'w> {
    pub(super) fn of(model: &'w ReadModel, events: &'w [&'w StoredEvent], careful: bool) -> Self {
        Self { model, forms: model.forms(), events, careful, faults: BTreeMap::new() }
    }

    /// Locks the streams, decides, runs the handlers, and moves the bookkeeping.
    pub(super) async fn fill(
        &mut self,
        batch: &mut Admitted<'_>,
        breaker: Breaker,
    ) -> Result<Plan<'w>, Interruption> {
        // Sorted, so that two batches lock the streams they share in one order.
        let streams: BTreeSet<&StreamId> =
            self.events.iter().map(|event| &event.stream_id).collect();
        let streams: Vec<&StreamId> = streams.into_iter().collect();
        let heads = batch.lock(&streams).await?;
        let mut plan = Plan::of(&heads, self.events);
        let bound = self.bind(&mut plan);
        self.run(batch, &mut plan, &bound).await?;
        let parked = self.parked(&plan);
        if !parked.is_empty() {
            recheck(batch, &plan, &parked).await?;
            let recently = batch.recently_parked(breaker.window).await?;
            storm(breaker, &parked, recently, streams.len())?;
        }
        batch.advance(&plan.steps).await?;
        batch.park(&parked).await?;
        Ok(plan)
    }

    /// Finds handlers and their values, for all events. Refuses those of which that is enough to know.
    fn bind(&mut self, plan: &mut Plan<'w>) -> Vec<Bound<'w>> {
        let mut bound = Vec::new();
        for slot in plan.due() {
            if !plan.is_due(slot) {
                continue;
            }
            match self.bind_one(slot, plan.event(slot)) {
                Ok(found) => bound.extend(found),
                Err(reason) => self.refuse(slot, reason, plan),
            }
        }
        bound
    }

    fn bind_one(&self, slot: Slot, event: &'w StoredEvent) -> Result<Option<Bound<'w>>, Reason> {
        let StoredEvent { stream_id, event_type, schema_version, .. } = event;
        let schema_version = *schema_version;
        if let Some(code) = &self.model.code {
            let action = Action::Code(&**code);
            return Ok(Some(Bound { slot, stream_id, action, values: Vec::new(), rows: None }));
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
        let rows = action.forms(&self.forms).and_then(|forms| {
            forms.iter().zip(&values).map(|(form, values)| form.row(values)).collect()
        });
        Ok(Some(Bound { slot, stream_id, action, values, rows }))
    }

    fn refuse(&mut self, slot: Slot, reason: Reason, plan: &mut Plan<'w>) {
        plan.refuse(slot);
        self.faults.insert(&plan.event(slot).stream_id, reason);
    }

    /// Runs the handlers.
    async fn run(
        &mut self,
        batch: &mut Admitted<'_>,
        plan: &mut Plan<'w>,
        bound: &[Bound<'w>],
    ) -> Result<(), Interruption> {
        for group in schedule(&self.tasks(bound)) {
            let mut group: Vec<&Bound<'w>> = group.into_iter().map(|task| &bound[task]).collect();
            group.retain(|bound| plan.is_due(bound.slot));
            let many = group.len() > 1;
            #[cfg(test)]
            let many = many && !self.model.one_by_one;
            if many && self.run_set(batch, &group).await? {
                continue;
            }
            for bound in group {
                if plan.is_due(bound.slot)
                    && let Ran::Refused(reason) =
                        self.run_one(batch, bound, plan.event(bound.slot)).await?
                {
                    self.refuse(bound.slot, reason, plan);
                }
            }
        }
        Ok(())
    }

    fn tasks(&self, bound: &[Bound<'w>]) -> Vec<Task> {
        let mut sets: HashMap<Alike, usize> = HashMap::new();
        let mut tasks: Vec<Task> = Vec::with_capacity(bound.len());
        for (index, one) in bound.iter().enumerate() {
            let before = index.checked_sub(1).map(|index| bound[index].stream_id);
            let begins = usize::from(before != Some(one.stream_id));
            let stream = tasks.last().map_or(0, |task| task.stream + begins);
            let next = sets.len();
            let forms = one.action.forms(&self.forms).unwrap_or_default();
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
        batch: &mut Admitted<'_>,
        group: &[&Bound<'w>],
    ) -> Result<bool, Interruption> {
        if self.careful {
            batch.save().await?;
        }
        match self.run_parts(batch, group).await {
            Ok(()) => Ok(true),
            Err(Error::Refused(_)) if self.careful => {
                batch.undo().await?;
                Ok(false)
            }
            Err(Error::Refused(_)) => Err(Interruption::Refused),
            Err(other) => Err(other.into()),
        }
    }

    /// A group in as few parts as possible: events that meet in a row may have to follow each other.
    async fn run_parts(&self, batch: &mut Admitted<'_>, group: &[&Bound<'w>]) -> Result<(), Error> {
        let Action::Sql(handler) = group[0].action else { return Ok(()) };
        let Ok(forms) = self.forms.of(handler) else { return Ok(()) };
        // Only some of the handlers may ask for it. Then a wrong count makes the events run one by one.
        let finds: Vec<bool> = (0..forms.len())
            .map(|number| {
                let mut all = group.iter().filter_map(|bound| bound.action.forms(&self.forms));
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

    /// Applies one event, or undoes it.
    async fn run_one(
        &self,
        batch: &mut Admitted<'_>,
        bound: &Bound<'w>,
        event: &StoredEvent,
    ) -> Result<Ran, Interruption> {
        if self.careful {
            batch.save().await?;
        }
        let refused = match bound.action {
            Action::Sql(handler) => execute(batch, handler, &bound.values).await?,
            Action::Code(code) => match code.apply(event, &mut Tables::of(batch)).await {
                Ok(()) => None,
                Err(CodeError::Refused(reason)) => Some(Reason::Code { reason }),
                Err(CodeError::Server(ServerError(error))) => return Err(error.into()),
            },
        };
        match refused {
            None => Ok(Ran::Applied),
            Some(reason) if self.careful => {
                batch.undo().await?;
                Ok(Ran::Refused(reason))
            }
            Some(_) => Err(Interruption::Refused),
        }
    }

    /// The streams that cannot go on, with their reasons.
    pub(super) fn parked(&self, plan: &Plan<'w>) -> Vec<ParkedStream> {
        plan.verdicts().filter_map(|(event, verdict)| self.parked_by(event, verdict)).collect()
    }

    fn parked_by(&self, event: &StoredEvent, verdict: Verdict) -> Option<ParkedStream> {
        let StoredEvent { stream_id, version, event_id, .. } = event;
        let (kind, reason, applied_event_id) = match (verdict, self.faults.get(stream_id)) {
            (Verdict::Refused, Some(reason)) => (reason.kind(), reason.to_string(), None),
            (Verdict::Conflict { applied }, _) => {
                let reason = format!(
                    "another event has version {version}: {applied} was applied, and {event_id} came"
                );
                (ParkKind::Conflict, reason, Some(applied.uuid()))
            }
            _ => return None,
        };
        Some(ParkedStream {
            stream_id: stream_id.clone(),
            version: *version,
            event_id: *event_id,
            event_type: event.event_type.clone(),
            position: Some(event.position),
            kind,
            reason,
            applied_event_id,
            attempts: 1,
            parked_at: Utc::now(),
        })
    }
}

/// Runs a handler; gives why MySQL refused one of its statements.
async fn execute(
    batch: &mut Admitted<'_>,
    handler: &Handler,
    values: &[Vec<Value>],
) -> Result<Option<Reason>, Error> {
    for (statement, values) in handler.statements.iter().zip(values) {
        match batch.execute(statement, values).await {
            Ok(()) => {}
            Err(Error::Refused(refusal)) => return Ok(Some(Reason::Refused(refusal))),
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}

/// Makes sure that a new stream was not begun by another instance meanwhile. It had no row that could be
/// locked, and that may be why its first event was refused here.
async fn recheck(
    batch: &mut Admitted<'_>,
    plan: &Plan<'_>,
    parked: &[ParkedStream],
) -> Result<(), Error> {
    let is_new = |stream: &&ParkedStream| {
        let mut steps = plan.steps.iter();
        steps.any(|step| *step.stream_id == stream.stream_id && step.from.last.is_none())
    };
    let mut new: Vec<&StreamId> =
        parked.iter().filter(is_new).map(|stream| &stream.stream_id).collect();
    new.sort_unstable();
    let heads = batch.lock(&new).await?;
    if heads.values().any(|head| head.last.is_some()) {
        return Err(Error::Overtaken);
    }
    Ok(())
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
