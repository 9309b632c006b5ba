//! Runs one batch: binds the values of its events, runs the events in groups, and refuses those that fail.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::Utc;
use domain_events::{StoredEvent, StreamId};
use projection::plan::{Plan, Slot, Task, Verdict, schedule, schedule_in_order};
use projection::{Handler, Lookup, Value};

use super::{Admitted, Breaker, ReadModel, Reason};
use crate::batching::{Forms, HandlerForms, Row};
use crate::binding::Bindings;
use crate::rust_projection::{CodeError, RustProjection, ServerError, Tables};
use crate::{Error, ParkKind, ParkedStream, Skips};

/// Why a batch is not committed.
pub(crate) enum Interruption {
    /// MySQL refused a statement, and without savepoints the batch cannot continue.
    Refused,
    /// The circuit breaker tripped, with its reason.
    Storm(String),
    Server(Error),
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

/// The outcome of one event.
enum Outcome {
    Applied,
    Refused(Reason),
}

/// The code that applies an event.
#[derive(Clone, Copy)]
enum Action<'w> {
    Sql(&'w Arc<Handler>),
    Code(&'w dyn RustProjection),
}

impl Action<'_> {
    /// The batch forms of its statements, if the event can join a set.
    fn forms<'f>(&self, forms: &'f Forms) -> Option<HandlerForms<'f>> {
        match self {
            Self::Sql(handler) => forms.of(handler).ok(),
            Self::Code(_) => None,
        }
    }
}

/// An event with its handler and the values of its statements.
struct Bound<'w> {
    slot: Slot,
    stream_id: &'w StreamId,
    action: Action<'w>,
    /// The values of each statement.
    values: Vec<Vec<Value>>,
    /// The row of each statement's batch form, if the event can join a set.
    rows: Option<Vec<Row>>,
}

/// Events with equal keys can be one set.
#[derive(PartialEq, Eq, Hash)]
enum SetKey {
    /// Events with the same handler.
    Handler(*const Handler),
    /// Events of any handlers whose only statements merge into the same statement.
    Merged(usize),
}

/// A batch that is being applied.
pub(super) struct BatchRun<'w> {
    model: &'w ReadModel,
    forms: Arc<Forms>,
    bindings: Arc<Bindings>,
    skips: Arc<Skips>,
    events: &'w [&'w StoredEvent],
    /// Whether a savepoint precedes each group and each single event, so that either can be undone alone.
    savepoints: bool,
    /// For each stream with a refused event, the reason.
    faults: BTreeMap<&'w StreamId, Reason>,
}

impl<'w> BatchRun<'w> {
    pub(super) fn of(
        model: &'w ReadModel,
        events: &'w [&'w StoredEvent],
        savepoints: bool,
    ) -> Self {
        let (forms, bindings, skips) = (model.forms(), model.bindings(), model.skips());
        Self { model, forms, bindings, skips, events, savepoints, faults: BTreeMap::new() }
    }

    /// Locks the streams, makes the plan, runs the handlers, and updates the bookkeeping.
    pub(super) async fn fill(
        &mut self,
        batch: &mut Admitted<'_>,
        breaker: Breaker,
    ) -> Result<Plan<'w>, Interruption> {
        // Sorted, so that two batches lock their common streams in the same order.
        let streams: BTreeSet<&StreamId> =
            self.events.iter().map(|event| &event.stream_id).collect();
        let streams: Vec<&StreamId> = streams.into_iter().collect();
        let heads = batch.lock(&streams).await?;
        let mut plan = Plan::of(&heads, self.events);
        let mut bound = self.bind(&mut plan);
        if self.forms.is_ordered() {
            bound.sort_by_key(|bound| plan.event(bound.slot).position);
        }
        self.run(batch, &mut plan, &bound).await?;
        let parked = self.parked(&plan);
        if !parked.is_empty() {
            recheck(batch, &plan, &parked).await?;
            let recently = batch.recently_parked(breaker.window).await?;
            if let Some(reason) = breaker.trips(&parked, recently, streams.len()) {
                return Err(Interruption::Storm(reason));
            }
        }
        batch.advance(&plan.steps).await?;
        batch.park(&parked).await?;
        Ok(plan)
    }

    /// Finds the handler and its values for each event. Refuses the events for which that fails.
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
        if self.skips.contains(event) {
            return Ok(None);
        }
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
            let bound = self.bindings.bind(statement, event);
            values.push(bound.map_err(|error| Reason::bind(statement, error))?);
        }
        let action = Action::Sql(handler);
        let rows = action.forms(&self.forms).and_then(|forms| {
            let forms = forms.forms.iter().zip(&values);
            forms.map(|(form, values)| form.row(values)).collect()
        });
        Ok(Some(Bound { slot, stream_id, action, values, rows }))
    }

    fn refuse(&mut self, slot: Slot, reason: Reason, plan: &mut Plan<'w>) {
        plan.refuse(slot);
        self.faults.insert(&plan.event(slot).stream_id, reason);
    }

    /// Runs the handlers, in sets where possible. Refuses the events that fail.
    async fn run(
        &mut self,
        batch: &mut Admitted<'_>,
        plan: &mut Plan<'w>,
        bound: &[Bound<'w>],
    ) -> Result<(), Interruption> {
        let tasks = self.tasks(bound);
        let groups =
            if self.forms.is_ordered() { schedule_in_order(&tasks) } else { schedule(&tasks) };
        for group in groups {
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
                    && let Outcome::Refused(reason) =
                        self.run_one(batch, bound, plan.event(bound.slot)).await?
                {
                    self.refuse(bound.slot, reason, plan);
                }
            }
        }
        Ok(())
    }

    /// The tasks for [`schedule`], in the order of `bound`.
    fn tasks(&self, bound: &[Bound<'w>]) -> Vec<Task> {
        let mut sets: HashMap<SetKey, usize> = HashMap::new();
        let mut tasks: Vec<Task> = Vec::with_capacity(bound.len());
        for (index, one) in bound.iter().enumerate() {
            let before = index.checked_sub(1).map(|index| bound[index].stream_id);
            let begins = usize::from(before != Some(one.stream_id));
            let stream = tasks.last().map_or(0, |task| task.stream + begins);
            let next = sets.len();
            let forms = one.action.forms(&self.forms).filter(|_| one.rows.is_some());
            let key = match (&forms, one.action) {
                (Some(forms), Action::Sql(handler)) => match &*forms.forms {
                    [form] => form.merges_as().map(SetKey::Merged),
                    _ => None,
                }
                .or(Some(SetKey::Handler(Arc::as_ptr(handler)))),
                _ => None,
            };
            let set = key.map(|key| *sets.entry(key).or_insert(next));
            let keeps_order = forms.is_none_or(|forms| forms.keeps_order());
            tasks.push(Task { stream, set, keeps_order });
        }
        tasks
    }

    /// Applies a group as sets. Returns false if MySQL refused one, after undoing them all.
    async fn run_set(
        &mut self,
        batch: &mut Admitted<'_>,
        group: &[&Bound<'w>],
    ) -> Result<bool, Interruption> {
        if self.savepoints {
            batch.save().await?;
        }
        match self.run_parts(batch, group).await {
            Ok(()) => Ok(true),
            Err(Error::Refused(_)) if self.savepoints => {
                batch.undo().await?;
                Ok(false)
            }
            Err(Error::Refused(_)) => Err(Interruption::Refused),
            Err(other) => Err(other.into()),
        }
    }

    /// Applies a group in as few sets as possible. Events that change the same row may need different sets.
    async fn run_parts(&self, batch: &mut Admitted<'_>, group: &[&Bound<'w>]) -> Result<(), Error> {
        let Action::Sql(handler) = group[0].action else { return Ok(()) };
        let Ok(HandlerForms { forms, meetings }) = self.forms.of(handler) else { return Ok(()) };
        // Merged handlers may differ here. A wrong count fails the set, and its events run one by one then.
        let expects: Vec<bool> = (0..forms.len())
            .map(|number| {
                let mut all = group.iter().filter_map(|bound| bound.action.forms(&self.forms));
                all.any(|all| all.forms[number].expects_one_row)
            })
            .collect();
        let rows: Vec<&Vec<Row>> = group.iter().filter_map(|bound| bound.rows.as_ref()).collect();
        for round in meetings.rounds(&rows) {
            let round: Vec<&Vec<Row>> = round.into_iter().map(|index| rows[index]).collect();
            let mut rest = &round[..];
            while !rest.is_empty() {
                let mut part = &rest[..within_bytes(rest, self.forms.set_bytes())];
                for (number, form) in forms.iter().enumerate() {
                    let column: Vec<&Row> = part.iter().map(|rows| &rows[number]).collect();
                    part = &part[..form.combine(&column).1];
                }
                for (number, form) in forms.iter().enumerate() {
                    let column: Vec<&Row> = part.iter().map(|rows| &rows[number]).collect();
                    let statement = &handler.statements[number];
                    let rows = form.combine(&column).0;
                    batch.execute_set(statement, form, rows, expects[number]).await?;
                }
                rest = &rest[part.len()..];
            }
        }
        Ok(())
    }

    /// Applies one event. With savepoints, it undoes a refused one.
    async fn run_one(
        &self,
        batch: &mut Admitted<'_>,
        bound: &Bound<'w>,
        event: &StoredEvent,
    ) -> Result<Outcome, Interruption> {
        if self.savepoints {
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
            None => Ok(Outcome::Applied),
            Some(reason) if self.savepoints => {
                batch.undo().await?;
                Ok(Outcome::Refused(reason))
            }
            Some(_) => Err(Interruption::Refused),
        }
    }

    /// The streams that the batch parks, with their reasons.
    pub(super) fn parked(&self, plan: &Plan<'w>) -> Vec<ParkedStream> {
        plan.verdicts().filter_map(|(event, verdict)| self.parked_by(event, verdict)).collect()
    }

    fn parked_by(&self, event: &StoredEvent, verdict: Verdict) -> Option<ParkedStream> {
        let StoredEvent { stream_id, version, event_id, .. } = event;
        let (kind, reason, applied_event_id) = match (verdict, self.faults.get(stream_id)) {
            (Verdict::Refused, Some(reason)) => (reason.kind(), reason.to_string(), None),
            (Verdict::Conflict { applied }, _) => {
                let reason = format!(
                    "another event has version {version}: {applied} was applied, {event_id} was received"
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

/// Runs the statements of a handler. Returns the reason if MySQL refused one of them.
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

/// Checks that no other instance has applied the first event of a stream that is about to be parked.
///
/// A new stream has no row to lock, so two instances can apply its first event at the same time. The later
/// one may fail only because of the effects of the other.
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

/// The number of rows, from the first, that fit in one set.
fn within_bytes(rows: &[&Vec<Row>], limit: usize) -> usize {
    let mut bytes = 0;
    let fits = |rows: &&&Vec<Row>| {
        bytes += rows.iter().flatten().map(bytes_of).sum::<usize>();
        bytes <= limit
    };
    rows.iter().take_while(fits).count().max(1)
}

fn bytes_of(value: &serde_json::Value) -> usize {
    value.as_str().map_or(8, str::len)
}
