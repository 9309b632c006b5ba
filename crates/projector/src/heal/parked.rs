//! Retries a parked stream, or skips the event that stopped it.

use daemon::{Exit, Failure};
use domain_events::{StreamId, StreamRange, StreamVersion};
use projection::plan::{Head, Last, Step};
use read_model::{Admitted, ParkKind, ParkedStream, Part, ReadModel, Session};

use crate::error::{Error as WorkError, ServerError};
use crate::failpoints::failpoint;
use crate::history::{OneBatch, catch_up};

/// The decision about the event that stopped a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision<'d> {
    /// Try it again.
    Retry,
    /// Leave it out, here and in every rebuild.
    Skip {
        /// Why.
        reason: &'d str,
        /// Who decided.
        actor: &'d str,
    },
}

/// Why a decision about a parked stream failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Work on the projection was interrupted.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The stream is not parked; perhaps another command was faster.
    #[error("stream {stream_id} is not parked")]
    NotParked {
        /// The stream.
        stream_id: StreamId,
    },
    /// Another command or a rebuild has moved the stream since the decision.
    #[error(
        "stream {stream_id} is no longer parked at version {version}: run `projector parked list`, and \
         decide again"
    )]
    Moved {
        /// The stream.
        stream_id: StreamId,
        /// The version that the decision was about.
        version: StreamVersion,
    },
    /// A stream in conflict: the event store does not have the event that was applied.
    #[error(
        "stream {stream_id} stays parked: its version {version} was applied from another event than the \
         event store has ({stored}). Run `projector rebuild start` for this projection"
    )]
    WrongEvent {
        /// The stream.
        stream_id: StreamId,
        /// The version.
        version: StreamVersion,
        /// The ID of the event in the event store, or "no event".
        stored: String,
    },
}

impl<E: Into<ServerError>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Work(error.into().into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Work(error) => error.into(),
            error => Self::new(Exit::Data, error),
        }
    }
}

/// Folds a parked stream from the event store in one transaction, beginning with the event that stopped it, or
/// after it for [`Decision::Skip`]. Deliveries of the stream wait meanwhile. If an event cannot be applied, the
/// stream is parked again, and the events before it stay applied.
///
/// If a rebuild has swapped the tables, this reads their columns again first.
///
/// # Errors
///
/// [`Error`]; among others, when the handlers do not belong to the tables in service.
pub(crate) async fn retry_or_skip(
    session: &mut Session,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision<'_>,
) -> Result<Part, Error> {
    if stream.kind == ParkKind::Conflict {
        require_applied(store, stream).await?;
    }
    loop {
        match try_once(session, model, store, stream, decision).await {
            Err(Error::Work(WorkError::Replaced)) => {
                model.prepare(session).await?;
                WorkError::require_in_service(model)?;
            }
            done => return done,
        }
    }
}

async fn try_once(
    session: &mut Session,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision<'_>,
) -> Result<Part, Error> {
    failpoint!("parked::before-batch");
    let mut batch = model.begin_command(session).await.map_err(WorkError::from)?;
    match fold(&mut batch, model, store, stream, decision).await {
        Ok(part) => {
            batch.commit().await?;
            Ok(part)
        }
        Err(error) => {
            // The first error matters more. If the rollback fails, the end of the session rolls back.
            drop(batch.rollback().await);
            Err(error)
        }
    }
}

/// Fails unless the event store has the event that was applied. Otherwise the conflict remains.
async fn require_applied(
    store: &mut event_store::Session,
    stream: &ParkedStream,
) -> Result<(), Error> {
    let ParkedStream { stream_id, version, applied_event_id, .. } = stream;
    let wanted = StreamRange { stream_id: stream_id.clone(), from: *version, to: *version };
    let stored = store.read_streams(&[wanted], 1).await?;
    match stored.first() {
        Some(event) if Some(event.event_id.uuid()) == *applied_event_id => Ok(()),
        found => Err(Error::WrongEvent {
            stream_id: stream_id.clone(),
            version: *version,
            stored: found.map_or_else(|| "no event".to_owned(), |event| event.event_id.to_string()),
        }),
    }
}

async fn fold(
    batch: &mut Admitted<'_>,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision<'_>,
) -> Result<Part, Error> {
    let stream_id = &stream.stream_id;
    let heads = batch.lock(&[stream_id]).await?;
    let head = heads.get(stream_id).copied().unwrap_or_default();
    if !head.is_parked {
        return Err(Error::NotParked { stream_id: stream_id.clone() });
    }
    batch.unpark(stream_id).await?;
    if let Decision::Skip { reason, actor } = decision {
        batch.audit(stream, "skip", reason, actor).await?;
    }
    // A conflict is about an event that the event store does not have, so there is nothing to leave out.
    if let Decision::Skip { reason, actor } = decision
        && stream.kind != ParkKind::Conflict
    {
        // The row of the parked stream was read before the lock.
        if head.next() != stream.version {
            let (stream_id, version) = (stream_id.clone(), stream.version);
            return Err(Error::Moved { stream_id, version });
        }
        let last = Some(Last { version: stream.version, event_id: stream.event_id });
        let (from, to) = (Head { is_parked: false, ..head }, Head { last, is_parked: false });
        batch.record_skip(stream, reason, actor).await?;
        let position = stream.position;
        batch.advance(&[Step { stream_id, from, to, position }]).await?;
    }
    let all = [(stream_id.clone(), StreamVersion::LAST)];
    Ok(catch_up(&mut OneBatch { batch, model }, store, &all).await?)
}
