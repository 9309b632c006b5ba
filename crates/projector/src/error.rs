//! Errors that interrupt work on a projection.

use daemon::{Exit, Failure};
use domain_events::{StreamId, StreamVersion};
use event_store::Writer;
use read_model::{ApplyError, Files, ReadModel};

/// A server that failed. Its connection must not be used again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error(transparent)]
    ReadModel(#[from] read_model::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
    #[error(transparent)]
    Store(#[from] event_store::Error),
}

impl ServerError {
    /// The name of the server, for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::ReadModel(_) => "mysql",
            Self::Broker(_) => "rabbitmq",
            Self::Store(_) => "postgresql",
        }
    }

    /// Whether another attempt may succeed without anybody changing anything.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::ReadModel(error) => error.is_transient(),
            Self::Broker(error) => !error.is_configuration(),
            Self::Store(error) => error.is_transient(),
        }
    }

    /// Whether a statement has waited in MySQL for a lock for too long.
    pub(crate) fn is_lock_wait(&self) -> bool {
        matches!(self, Self::ReadModel(error) if error.is_lock_wait())
    }

    /// Whether only a change of the configuration helps. A queue or an exchange with other settings can be
    /// deleted in RabbitMQ, and its projection goes on then; the others never stop.
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            Self::ReadModel(error) => error.is_configuration(),
            Self::Broker(broker::Error::Mismatch { .. }) => false,
            Self::Broker(error) => error.is_configuration(),
            Self::Store(error) => error.is_configuration(),
        }
    }

    fn exit(&self) -> Exit {
        use broker::Error as Broker;
        use event_store::Error as Store;
        use read_model::Error as ReadModel;
        match self {
            Self::ReadModel(ReadModel::Login { .. })
            | Self::Broker(Broker::Login { .. })
            | Self::Store(Store::Login { .. }) => Exit::Login,
            Self::ReadModel(ReadModel::Url)
            | Self::Broker(Broker::Url | Broker::Mismatch { .. } | Broker::Name { .. })
            | Self::Store(Store::Url) => Exit::Configuration,
            Self::ReadModel(
                ReadModel::Unreachable { .. }
                | ReadModel::ReadOnly { .. }
                | ReadModel::Timeout { .. },
            )
            | Self::Broker(Broker::Unreachable { .. } | Broker::Timeout { .. })
            | Self::Store(
                Store::Unreachable { .. } | Store::NotPrimary { .. } | Store::Timeout { .. },
            ) => Exit::Unavailable,
            Self::ReadModel(_) | Self::Broker(_) | Self::Store(_) => Exit::Failed,
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        Self::new(error.exit(), error)
    }
}

/// An error that interrupts work on a projection. Nothing is lost: unapplied events are redelivered, or read
/// from the event store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A server failed.
    #[error(transparent)]
    Server(ServerError),
    /// Open transactions that have appended events keep the event store from being read in order.
    #[error(transparent)]
    Fence(#[from] OpenWriters),
    /// The event store does not have events that were applied. The projection is paused.
    #[error("{reason}")]
    Diverged {
        /// What is missing, and what to do.
        reason: String,
    },
    /// The event store lacks a version of a stream, but has later ones.
    #[error(
        "the event store lacks version {} of stream {stream_id}, but has later ones: events were deleted, or \
         a backup was restored in part. Restore the missing event",
        version.get()
    )]
    Hole {
        /// The stream.
        stream_id: StreamId,
        /// The missing version.
        version: StreamVersion,
    },
    /// The projection is paused.
    #[error("paused: {reason}")]
    Paused {
        /// Why.
        reason: String,
    },
    /// Other tables or other files were put in service: both must be read again.
    #[error("other tables or files were put in service")]
    Replaced,
    /// A replay is due, and the projection needs the order of the event store.
    #[error("the history is being applied, and later events wait for it")]
    Replaying,
    /// This program must not apply events: other handlers are in service.
    #[error(
        "these files of {projection} are not in service. Use the files in service, or put these in service with \
         `projector adopt {projection}`; handlers that {projection} never had are put in service by the first \
         projector that starts with them"
    )]
    OtherHandlers {
        /// The projection.
        projection: String,
    },
    /// This program must not apply events: its handlers are for other tables.
    #[error(
        "tables.sql of {projection} differs from that of the tables in service: use the files in service, \
         or run `projector rebuild start {projection}` to put these in service"
    )]
    OtherTables {
        /// The projection.
        projection: String,
    },
    /// A rebuild or a rollback decides which files are in service.
    #[error(
        "a rebuild or a rollback of {projection} is under way, and decides whether these files are put in \
         service; `projector rebuild status {projection}` shows it"
    )]
    Undecided {
        /// The projection.
        projection: String,
    },
    /// The daemon shuts down.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Fails unless the files of this program are in service.
    pub(crate) fn require_in_service(model: &ReadModel) -> Result<(), Self> {
        let projection = model.name().to_owned();
        match model.files() {
            Files::InService => Ok(()),
            Files::OtherHandlers => Err(Self::OtherHandlers { projection }),
            Files::OtherTables => Err(Self::OtherTables { projection }),
        }
    }

    /// The server that failed, if one did.
    pub(crate) fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Fence(_)
            | Self::Diverged { .. }
            | Self::Hole { .. }
            | Self::Paused { .. }
            | Self::Replaced
            | Self::OtherHandlers { .. }
            | Self::OtherTables { .. }
            | Self::Undecided { .. }
            | Self::Replaying
            | Self::Stopped => None,
        }
    }
}

impl<E: Into<ServerError>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Server(error.into())
    }
}

impl From<ApplyError> for Error {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Server(error) => Self::Server(error.into()),
            ApplyError::Paused { reason } | ApplyError::Storm { reason } => Self::Paused { reason },
            ApplyError::Replaced => Self::Replaced,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = error.server().map_or(Exit::Failed, ServerError::exit);
        Self::new(exit, error)
    }
}

/// Open transactions that have appended events. Reading in order must wait for them.
#[derive(Debug, thiserror::Error)]
#[error(
    "open transactions that have appended events keep the event store from being read in order: {}; commit \
     or end them",
    list(.0)
)]
pub(crate) struct OpenWriters(pub(crate) Vec<Writer>);

fn list(writers: &[Writer]) -> String {
    let one = |writer: &Writer| {
        let pid = writer.pid.map_or_else(|| "prepared".to_owned(), |pid| format!("pid {pid}"));
        let age = writer.age_seconds.map_or_else(String::new, |age| format!(" for {age:.0} s"));
        format!("{pid} ({}){age}", writer.application_name)
    };
    writers.iter().map(one).collect::<Vec<_>>().join(", ")
}
