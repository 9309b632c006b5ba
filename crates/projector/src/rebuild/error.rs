//! Why a rebuild or a comparison ends.

use daemon::{Exit, Failure};
use read_model::ApplyError;

use crate::error::{Error as WorkError, ServerError};

/// Why a rebuild, a comparison or another change of a projection's tables as a whole ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// As for any work on a projection.
    #[error(transparent)]
    Work(WorkError),
    /// Another process has the lock.
    #[error("another rebuild or comparison of {projection} is running")]
    Another {
        /// The projection.
        projection: String,
    },
    /// What was asked for must wait for a rebuild.
    #[error(
        "a rebuild of {projection} is under way: `projector rebuild cancel {projection}` gives it up"
    )]
    UnderWay {
        /// The projection.
        projection: String,
    },
    /// Somebody gave it up.
    #[error("the rebuild of {projection} was cancelled")]
    Cancelled {
        /// The projection.
        projection: String,
    },
    /// It failed in another process.
    #[error("the rebuild of {projection} failed: {reason}")]
    Failed {
        /// The projection.
        projection: String,
        /// Why.
        reason: String,
    },
    /// Rows may belong to several streams.
    #[error("single streams of {projection} cannot be checked or folded: {reason}")]
    NotOwned {
        /// The projection.
        projection: String,
        /// The statement to which that is due.
        reason: String,
    },
    /// There is nothing to cancel.
    #[error("no rebuild of {projection} is under way")]
    NothingToCancel {
        /// The projection.
        projection: String,
    },
    /// There is nothing to go back to.
    #[error("{projection} has no previous tables: they were dropped, or it was never rebuilt")]
    NoPreviousTables {
        /// The projection.
        projection: String,
    },
    /// The new handlers cannot apply everything.
    #[error(
        "{parked} streams cannot be applied by these handlers, one because: {reason}; nothing was \
         swapped. Fix the handlers and rebuild again, or accept it with --allow-parked"
    )]
    Parked {
        /// How many streams.
        parked: i64,
        /// Why, of one of them.
        reason: String,
    },
}

impl Error {
    /// Whether the rebuild can go on without anybody doing anything.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Work(error) => error.server().is_some_and(ServerError::is_transient),
            Self::Another { .. }
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
