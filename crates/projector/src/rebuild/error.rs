//! Errors of rebuilds and comparisons.

use daemon::{Exit, Failure};
use read_model::ApplyError;

use crate::error::{Error as WorkError, ServerError};

/// An error of a rebuild, a rollback, a comparison, or another operation on all tables of a projection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Work on the projection was interrupted.
    #[error(transparent)]
    Work(WorkError),
    /// Another process holds the lock.
    #[error(
        "another rebuild or comparison of {projection} is running: wait until it ends. To end a rebuild, run \
         `projector rebuild cancel {projection}`"
    )]
    Locked {
        /// The projection.
        projection: String,
    },
    /// The operation is impossible during a rebuild.
    #[error(
        "a rebuild of {projection} is under way; wait until it ends, or run `projector rebuild cancel \
         {projection}`"
    )]
    UnderWay {
        /// The projection.
        projection: String,
    },
    /// An operator cancelled the rebuild.
    #[error("the rebuild of {projection} was cancelled")]
    Cancelled {
        /// The projection.
        projection: String,
    },
    /// The rebuild failed in another process.
    #[error("the rebuild of {projection} failed in another process: {reason}")]
    Failed {
        /// The projection.
        projection: String,
        /// Why.
        reason: String,
    },
    /// Some rows may belong to several streams.
    #[error(
        "single streams of {projection} cannot be verified or rebuilt, because a row may belong to several streams: \
         {reason}"
    )]
    NotOwned {
        /// The projection.
        projection: String,
        /// The statement that causes it.
        reason: String,
    },
    /// No rebuild can be cancelled: none is under way, or its tables are already swapped.
    #[error(
        "no rebuild of {projection} is under way; `projector rebuild status {projection}` shows the last one"
    )]
    NothingToCancel {
        /// The projection.
        projection: String,
    },
    /// The previous tables do not exist.
    #[error("{projection} has no previous tables: they were dropped, or it was never rebuilt")]
    NoPreviousTables {
        /// The projection.
        projection: String,
    },
    /// The new handlers cannot apply all events.
    #[error(
        "{parked} streams cannot be applied by these handlers, for example because: {reason}. The tables \
         were not swapped. Fix the handlers and rebuild again, or accept parked streams with --allow-parked"
    )]
    Parked {
        /// The number of streams.
        parked: i64,
        /// The reason of one of them.
        reason: String,
    },
}

impl Error {
    /// Whether another attempt may succeed without anybody changing anything.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Work(error) => error.server().is_some_and(ServerError::is_transient),
            Self::Locked { .. }
            | Self::UnderWay { .. }
            | Self::Cancelled { .. }
            | Self::Failed { .. }
            | Self::NotOwned { .. }
            | Self::NothingToCancel { .. }
            | Self::NoPreviousTables { .. }
            | Self::Parked { .. } => false,
        }
    }
}

impl<E: Into<ServerError>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Work(error.into().into())
    }
}

impl From<WorkError> for Error {
    fn from(error: WorkError) -> Self {
        Self::Work(error)
    }
}

impl From<ApplyError> for Error {
    fn from(error: ApplyError) -> Self {
        Self::Work(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Work(error) => error.into(),
            error => Self::new(Exit::Failed, error),
        }
    }
}
