//! Letting a parked stream go on.

use daemon::{Exit, Failure};
use domain_events::{StreamId, StreamRange, StreamVersion};
use projection::plan::{Head, Last, Step};
use read_model::{Admitted, ParkKind, ParkedStream, Part, ReadModel, Session};

use crate::error::{Error as WorkError, ServerError};
use crate::failpoints::failpoint;
use crate::history::{OneBatch, catch_up};

/// How to go on with the event that stopped a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Try it again.
    Retry,
    /// Leave it out.
    Skip,
}

/// Why a parked stream does not go on. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// As for any work on a projection.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// It is not parked, or not any more.
    #[error("stream {stream_id} is not parked")]
    NotParked {
        /// The stream.
        stream_id: StreamId,
    },
    /// A conflict that the event store does not settle.
    #[error(
        "version {version} of stream {stream_id} was applied from another event than the event store \
         has, {stored}: this read model must be rebuilt"
    )]
    WrongEvent {
        /// The stream.
        stream_id: StreamId,
        /// The version.
        version: StreamVersion,
        /// The event that the event store has.
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

/// Folds a parked stream from the event store, from the event that stopped it on, in one transaction.
/// Deliveries of the stream wait meanwhile. Where an event cannot be applied, the stream is parked again,
/// and the events before it stay applied.
///
/// After a rebuild, the tables are read again first: handlers that they are not for are refused.
///
/// # Errors
///
/// See [`Error`].
pub(crate) async fn go_on(
    session: &mut Session,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision,
) -> Result<Part, Error> {
    if stream.kind == ParkKind::Conflict {
        require_applied(store, stream).await?;
    }
    loop {
        match once(session, model, store, stream, decision).await {
            Err(Error::Work(WorkError::Replaced)) => {
                model.prepare(session).await?;
                if model.is_outdated() {
                    let projection = model.name().to_owned();
                    return Err(WorkError::Outdated { projection }.into());
                }
            }
            done => return done,
        }
    }
}

async fn once(
    session: &mut Session,
    model: &ReadModel,
    store: &mut event_store::Session,
    stream: &ParkedStream,
    decision: Decision,
) -> Result<Part, Error> {
    failpoint!("parked::before-batch");
    let mut batch = model.begin_command(session).await.map_err(WorkError::from)?;
    match fold(&mut batch, model, store, stream, decision).await {
        Ok(part) => {
            batch.commit().await?;
            Ok(part)
        }
        Err(error) => {
            // The first error says more. The session goes anyway.
            drop(batch.rollback().await);
            Err(error)
        }
    }
}

/// Makes sure that the event store has the event that was applied: only then a conflict can go on.
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
    decision: Decision,
) -> Result<Part, Error> {
    let stream_id = &stream.stream_id;
    let heads = batch.lock(&[stream_id]).await?;
    let head = heads.get(stream_id).copied().unwrap_or_default();
    if !head.is_parked {
        return Err(Error::NotParked { stream_id: stream_id.clone() });
    }
    batch.unpark(stream_id).await?;
    if decision == Decision::Skip && stream.kind != ParkKind::Conflict {
        let last = Some(Last { version: stream.version, event_id: stream.event_id });
        let (from, to) = (Head { is_parked: false, ..head }, Head { last, is_parked: false });
        batch.advance(&[Step { stream_id, from, to }]).await?;
    }
    let all = [(stream_id.clone(), StreamVersion::LAST)];
    Ok(catch_up(&mut OneBatch { batch, model }, store, &all).await?)
}
