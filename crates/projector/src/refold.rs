//! Letting a parked stream go on.

use domain_events::{Event, StreamVersion};
use event_store::Wanted;

use crate::apply::{ApplyError, Part, ReadModel, apply_part};
use crate::mysql::{Batch, Gate, ParkKind, ParkedStream, Session};
use crate::sequence::{Head, Last, Step};
use crate::trouble::Trouble;

/// Events of a stream that are applied with one step of the bookkeeping.
const PAGE: u32 = 500;

/// How to go on with the event that stopped a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Try it again.
    Retry,
    /// Leave it out.
    Discard,
}

/// Folds a parked stream from the event store, from the event on that stopped it, in one transaction.
/// Deliveries of the stream wait meanwhile. When an event cannot be applied, what is before it is, and
/// the stream is parked there.
///
/// # Errors
///
/// When a server fails, or when the event store has another event than the read model: then nothing is
/// changed.
pub(crate) async fn refold(
    session: &mut Session,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision,
) -> Result<Part, Trouble> {
    if stream.kind == ParkKind::Conflict {
        require_applied(store, stream).await?;
    }
    let (mut batch, gate) = session.begin(&model.ledger, model.forms().passage()).await?;
    // Paused or not: a person has asked for it.
    let (Gate::Open { .. } | Gate::Paused { .. }) = gate;
    match fold(&mut batch, model, store, stream, decision).await {
        Ok(part) => {
            batch.commit().await?;
            Ok(part)
        }
        Err(trouble) => {
            // The first error tells more; the session goes anyway.
            drop(batch.rollback().await);
            Err(trouble)
        }
    }
}

/// A conflict can be let go only if the event store has the event that was applied.
async fn require_applied(
    store: &mut event_store::Session,
    stream: &ParkedStream,
) -> Result<(), Trouble> {
    let ParkedStream { stream_id, version, applied_event_id, .. } = stream;
    let wanted = Wanted { stream_id: stream_id.clone(), from: *version, to: *version };
    let stored = store.read_streams(&[wanted], 1).await?;
    match stored.first() {
        Some(event) if Some(event.event_id.uuid()) == *applied_event_id => Ok(()),
        found => Err(Trouble::WrongEvent {
            stream_id: stream_id.clone(),
            version: *version,
            stored: found.map_or_else(|| "no event".to_owned(), |event| event.event_id.to_string()),
        }),
    }
}

async fn fold(
    batch: &mut Batch<'_>,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision,
) -> Result<Part, Trouble> {
    let stream_id = &stream.stream_id;
    let known = batch.lock(&[stream_id], &[]).await?;
    let head = known.heads.get(stream_id).copied().unwrap_or_default();
    if !head.is_parked {
        return Err(Trouble::NotParked { stream_id: stream_id.clone() });
    }
    batch.unpark(stream_id).await?;
    let mut from = head.last.map_or(StreamVersion::FIRST, |last| last.version.next());
    if decision == Decision::Discard && stream.kind != ParkKind::Conflict {
        let last = Some(Last { version: stream.version, event_id: stream.event_id });
        let (from_head, to) = (Head { is_parked: false, ..head }, Head { last, is_parked: false });
        batch.advance(&[Step { stream_id, from: from_head, to }]).await?;
        from = stream.version.next();
    }
    let mut total = Part { applied: 0, parked: None };
    loop {
        // Read with the stream locked: what is delivered later comes after it.
        let to = StreamVersion::new(from.get() + i64::from(PAGE) - 1).unwrap_or(from);
        let wanted = Wanted { stream_id: stream_id.clone(), from, to };
        let events = store.read_streams(&[wanted], PAGE).await?;
        let page: Vec<&Event> = events.iter().collect();
        if page.is_empty() {
            return Ok(total);
        }
        let part = apply_part(batch, model, &page).await.map_err(|error| match error {
            ApplyError::Server(error) => Trouble::ReadModel(error),
            other => other.into(),
        })?;
        total.applied += part.applied;
        if part.parked.is_some() {
            return Ok(Part { parked: part.parked, ..total });
        }
        from = to.next();
    }
}
