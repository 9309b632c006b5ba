//! One batch at work: what its events need, in which groups they run, and which of them cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::Utc;
use domain_events::{Event, EventId, StreamId};

use super::{Breaker, ReadModel, Reason};
use crate::code::{CodeError, RustProjection, ServerError, Tables};
use crate::forms::Forms;
use crate::mysql::{self, Batch, ParkKind, ParkedStream, Row, SetForm};
use crate::projection::{Handler, Lookup, Value};
use crate::schedule::{Task, schedule};
use crate::sequence::{Plan, Verdict, plan};

/// A set is not longer than this, in bytes of JSON; the server limits a packet.
const SET_BYTES: usize = 4 << 20;

/// What keeps a batch from being committed.
pub(super) enum Interruption {
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
pub(super) struct Work<'w> {
    pub(super) model: &'w ReadModel,
    pub(super) forms: &'w Forms,
    pub(super) events: &'w [&'w Event],
    pub(super) careful: bool,
    /// The events that cannot be applied.
    pub(super) faults: BTreeMap<usize, Reason>,
}

impl<'w> Work<'w> {
    pub(super) async fn fill(
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
    pub(super) fn parked(&self, plan: &Plan<'w>) -> Vec<ParkedStream> {
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

    pub(super) fn unversioned_faults(&self) -> HashMap<usize, String> {
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
