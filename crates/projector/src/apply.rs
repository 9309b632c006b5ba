//! Applying events to a read model: effects and bookkeeping in one transaction.

use std::collections::BTreeSet;
use std::path::PathBuf;

use domain_events::{EventId, EventType, SchemaVersion, StreamId, StreamVersion};

use crate::mysql::{self, Batch, Committed, Ledger, Refusal, Session};
use crate::projection::{BindError, Lookup, Projection};
use crate::sequence::{Plan, plan};
use crate::stream_event::StreamEvent;

/// A projection and its bookkeeping.
pub(crate) struct ReadModel {
    pub(crate) projection: Projection,
    pub(crate) ledger: Ledger,
}

impl ReadModel {
    pub(crate) fn new(projection: Projection) -> Self {
        let ledger = Ledger::of(&projection.name);
        Self { projection, ledger }
    }

    /// The name of the projection.
    pub(crate) fn name(&self) -> &str {
        &self.projection.name
    }
}

/// A batch that was applied.
pub(crate) struct Applied<'e> {
    /// What was decided for each event.
    pub(crate) plan: Plan<'e>,
    /// That it was.
    pub(crate) committed: Committed,
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug)]
pub(crate) enum ApplyError {
    /// MySQL let us down; no event is to blame.
    Server(mysql::Error),
    /// One event cannot be applied; without its stream, the rest of the batch can.
    Event(Box<EventFault>),
}

/// An event that cannot be applied.
#[derive(Debug, thiserror::Error)]
#[error("event {event_id}, version {version} of stream {stream_id}: {reason}")]
pub(crate) struct EventFault {
    pub(crate) stream_id: StreamId,
    pub(crate) version: StreamVersion,
    pub(crate) event_id: EventId,
    pub(crate) reason: Reason,
}

impl EventFault {
    /// Whether an event has to wait for this one: it is this one, or a later one of its stream.
    pub(crate) fn stops(&self, event: &StreamEvent) -> bool {
        event.stream_id == self.stream_id && event.version >= self.version
    }
}

/// Why an event cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{}:{line}: {error}", file.display())]
    Bind { file: PathBuf, line: u64, error: BindError },
    #[error(transparent)]
    Refused(Refusal),
    #[error("no handler is for schema version {schema_version} of {event_type}")]
    UnknownSchema { event_type: EventType, schema_version: SchemaVersion },
}

/// Applies the events whose turn has come, each stream in order, and commits.
///
/// # Errors
///
/// See [`ApplyError`]. After [`ApplyError::Server`] the session must be dropped.
pub(crate) async fn apply<'e>(
    session: &mut Session,
    model: &ReadModel,
    events: &[&'e StreamEvent],
) -> Result<Applied<'e>, ApplyError> {
    let mut batch = session.begin(&model.ledger).await.map_err(ApplyError::Server)?;
    match fill(&mut batch, model, events).await {
        Ok(plan) => {
            let committed = batch.commit().await.map_err(ApplyError::Server)?;
            Ok(Applied { plan, committed })
        }
        Err(error @ ApplyError::Event(_)) => {
            batch.rollback().await.map_err(ApplyError::Server)?;
            Err(error)
        }
        Err(error @ ApplyError::Server(_)) => {
            // The first error tells more; the session goes anyway.
            drop(batch.rollback().await);
            Err(error)
        }
    }
}

async fn fill<'e>(
    batch: &mut Batch<'_>,
    model: &ReadModel,
    events: &[&'e StreamEvent],
) -> Result<Plan<'e>, ApplyError> {
    // Sorted, so that two batches lock the streams they share in one order.
    let streams: BTreeSet<&StreamId> = events.iter().map(|event| &event.stream_id).collect();
    let streams: Vec<&StreamId> = streams.into_iter().collect();
    let heads = batch.lock(&streams).await.map_err(ApplyError::Server)?;
    let plan = plan(&heads, events);
    for event in &plan.apply {
        handle(batch, &model.projection, event).await?;
    }
    batch.advance(&plan.moves).await.map_err(ApplyError::Server)?;
    Ok(plan)
}

/// Runs the handler of one event.
async fn handle(
    batch: &mut Batch<'_>,
    projection: &Projection,
    event: &StreamEvent,
) -> Result<(), ApplyError> {
    let fault = |reason| {
        ApplyError::Event(Box::new(EventFault {
            stream_id: event.stream_id.clone(),
            version: event.version,
            event_id: event.event.event_id,
            reason,
        }))
    };
    let (event_type, schema_version) = (&event.event.event_type, event.event.schema_version);
    let handler = match projection.lookup(event_type, schema_version) {
        Lookup::Found(handler) => handler,
        Lookup::Unhandled => return Ok(()),
        Lookup::UnknownSchema => {
            let event_type = event_type.clone();
            return Err(fault(Reason::UnknownSchema { event_type, schema_version }));
        }
    };
    for statement in &handler.statements {
        let values = statement.bind(event).map_err(|error| {
            fault(Reason::Bind { file: statement.file.to_path_buf(), line: statement.line, error })
        })?;
        batch.execute(statement, values).await.map_err(|error| match error {
            mysql::Error::Refused(refusal) => fault(Reason::Refused(refusal)),
            other => ApplyError::Server(other),
        })?;
    }
    Ok(())
}
