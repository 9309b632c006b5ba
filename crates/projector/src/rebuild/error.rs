//! Errors of rebuilds and comparisons.

use daemon::output::counted;
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
    /// An event was skipped while tables were built without that decision.
    #[error(
        "an event of {projection} was skipped meanwhile, and the tables that were built may have its effect: \
         run the command again"
    )]
    SkippedMeanwhile {
        /// The projection.
        projection: String,
    },
    /// The rows of a stream cannot be repaired, because it is parked in one of the two read models.
    #[error(
        "nothing was repaired: stream {stream_id} is parked at an event that these handlers apply, or at \
         one that earlier handlers applied. Run `projector parked retry {projection} --all`, or `projector \
         rebuild start {projection}`"
    )]
    Uneven {
        /// The projection.
        projection: String,
        /// The stream.
        stream_id: String,
    },
    /// Nobody recorded the definition of the previous tables.
    #[error(
        "the previous tables of {projection} cannot be put back in service: it is not recorded from which \
         files they were kept up to date, because an earlier release took them out of service. Run \
         `projector rebuild start {projection}` with the files that you want"
    )]
    UnknownPrevious {
        /// The projection.
        projection: String,
    },
    /// The definition of the previous tables is not stored as SQL.
    #[error(
        "the previous tables of {projection} were kept up to date by other code than this program has, and \
         only SQL is stored: run the rollback with that program"
    )]
    OtherProgram {
        /// The projection.
        projection: String,
    },
    /// The stored files are refused by this version.
    #[error(
        "the files of the previous tables of {projection} are refused by this version: {fault}"
    )]
    RefusedFiles {
        /// The projection.
        projection: String,
        /// The first mistake.
        fault: String,
    },
    /// A swap would break or drop something that people have added to the live tables.
    #[error(
        "{projection} cannot be swapped, because {found}, which is not in its tables.sql: {remedy}"
    )]
    Attached {
        /// The projection.
        projection: String,
        /// What they have added.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The new handlers cannot apply all events.
    #[error(
        "{} cannot be applied by these handlers, for example because: {reason}. The tables were not swapped. \
         Fix the handlers and rebuild again, or accept parked streams with --allow-parked",
        counted(parked, "stream", "streams")
    )]
    Parked {
        /// The number of streams.
        parked: i64,
        /// The reason of one of them.
        reason: String,
    },
}

impl Error {
    /// Whether MySQL has undone the work of a session for the sake of others: by a deadlock, for example.
    pub(crate) fn is_undone(&self) -> bool {
        let Self::Work(error) = self else { return false };
        matches!(error.server(), Some(ServerError::ReadModel(read_model::Error::Transient { .. })))
    }

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
            | Self::SkippedMeanwhile { .. }
            | Self::Uneven { .. }
            | Self::UnknownPrevious { .. }
            | Self::OtherProgram { .. }
            | Self::RefusedFiles { .. }
            | Self::Attached { .. }
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
