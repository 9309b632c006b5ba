//! Why work on a projection stops for now.

use daemon::{Exit, Failure};
use domain_events::Position;
use event_store::Writer;
use read_model::ApplyError;

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

    /// Whether trying again can help without anybody doing anything.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::ReadModel(error) => error.is_transient(),
            Self::Broker(error) => !error.is_configuration(),
            Self::Store(error) => error.is_passing(),
        }
    }

    /// Whether only a change of the configuration helps.
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            Self::ReadModel(error) => error.is_configuration(),
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
            Self::ReadModel(ReadModel::Unreachable { .. } | ReadModel::Timeout { .. })
            | Self::Broker(Broker::Unreachable { .. } | Broker::Timeout { .. })
            | Self::Store(Store::Unreachable { .. } | Store::Timeout { .. }) => Exit::Unavailable,
            Self::ReadModel(_) | Self::Broker(_) | Self::Store(_) => Exit::Failed,
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        Self::new(error.exit(), error)
    }
}

/// Why work on a projection stops for now. Nothing is lost: unapplied events come again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A server failed.
    #[error(transparent)]
    Server(ServerError),
    /// Open transactions hold up reading the event store in order.
    #[error(transparent)]
    Fence(#[from] OpenWriters),
    /// The event store ends before the checkpoint.
    #[error(
        "the event store ends at position {decided}, but this read model has events up to \
         {checkpoint}: an older event store was restored, and the read model must be rebuilt",
        decided = decided.get(), checkpoint = checkpoint.get()
    )]
    StoreWentBack {
        /// The checkpoint of the read model.
        checkpoint: Position,
        /// The last position of the event store.
        decided: Position,
    },
    /// The projection is paused.
    #[error("paused: {reason}")]
    Paused {
        /// Why.
        reason: String,
    },
    /// The tables must be read again.
    #[error("the read model was replaced by a rebuild")]
    Replaced,
    /// This program must not apply anything any more.
    #[error(
        "the read model of {projection} was rebuilt from other files than this program has: start it \
         again with the new files"
    )]
    Outdated {
        /// The projection.
        projection: String,
    },
    /// The daemon shuts down.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// The server that failed, if one did.
    pub(crate) fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Fence(_)
            | Self::StoreWentBack { .. }
            | Self::Paused { .. }
            | Self::Replaced
            | Self::Outdated { .. }
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

/// Transactions that append events and hold up reading them in order.
#[derive(Debug, thiserror::Error)]
#[error("open transactions that append events hold up reading them in order: {}", list(.0))]
pub(crate) struct OpenWriters(pub(crate) Vec<Writer>);

fn list(writers: &[Writer]) -> String {
    let one = |writer: &Writer| {
        let pid = writer.pid.map_or_else(|| "prepared".to_owned(), |pid| format!("pid {pid}"));
        let age = writer.age_seconds.map_or_else(String::new, |age| format!(" for {age:.0} s"));
        format!("{pid} ({}){age}", writer.application_name)
    };
    writers.iter().map(one).collect::<Vec<_>>().join(", ")
}
