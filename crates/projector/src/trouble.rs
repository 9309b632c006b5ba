//! What ends a round of work, to be begun again after a pause.

use daemon::{Exit, Failure};
use domain_events::{Position, StreamId, StreamVersion};

use crate::apply::ApplyError;
use crate::history::OpenWriters;
use crate::mysql;

/// Why a projection cannot go on for now. Nothing is lost: what is not applied comes again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    ReadModel(#[from] mysql::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
    #[error(transparent)]
    Store(#[from] event_store::Error),
    #[error(transparent)]
    Fence(#[from] OpenWriters),
    #[error(
        "the event store ends at position {decided}, but this read model has events up to \
         {checkpoint}: an older event store was restored, and the read model must be built anew",
        decided = decided.get(), checkpoint = checkpoint.get()
    )]
    StoreWentBack { checkpoint: Position, decided: Position },
    #[error("paused: {reason}")]
    Paused { reason: String },
    #[error("the read model was replaced by a rebuild")]
    Replaced,
    #[error(
        "the read model of {projection} was rebuilt from other files than this instance has: restart it \
         with the new ones"
    )]
    Outdated { projection: String },
    #[error("stopped")]
    Stopped,
    #[error("another rebuild or comparison of {projection} is at work")]
    AnotherRebuild { projection: String },
    #[error(
        "a rebuild of {projection} is under way: `projector rebuild {projection} --cancel` gives it up"
    )]
    RebuildUnderWay { projection: String },
    #[error("the rebuild of {projection} was cancelled")]
    Cancelled { projection: String },
    #[error("the rebuild of {projection} failed: {reason}")]
    RebuildFailed { projection: String, reason: String },
    #[error("streams of {projection} cannot be looked at by themselves: {reason}")]
    NotOwned { projection: String, reason: String },
    #[error("no rebuild of {projection} is under way")]
    NothingToCancel { projection: String },
    #[error("the tables of before are gone: there is nothing to roll {projection} back to")]
    NoGeneration { projection: String },
    #[error(
        "{parked} streams cannot be applied by these handlers, one because: {reason}; nothing was swapped. \
         Mend them and rebuild again, or accept it with --allow-parked"
    )]
    ParkedInRebuild { parked: i64, reason: String },
    #[error("stream {stream_id} is not parked")]
    NotParked { stream_id: StreamId },
    #[error(
        "version {version} of stream {stream_id} was applied from another event than the event store \
         has, {stored}: this read model must be built anew"
    )]
    WrongEvent { stream_id: StreamId, version: StreamVersion, stored: String },
}

impl From<ApplyError> for Trouble {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Server(error) => Self::ReadModel(error),
            ApplyError::Paused { reason } | ApplyError::Storm { reason } => Self::Paused { reason },
            ApplyError::Replaced => Self::Replaced,
        }
    }
}

impl Trouble {
    /// The server whose connection is lost, for the metric.
    pub(crate) fn server(&self) -> Option<&'static str> {
        match self {
            Self::ReadModel(_) => Some("mysql"),
            Self::Broker(_) => Some("rabbitmq"),
            Self::Store(_) => Some("postgresql"),
            Self::Fence(_)
            | Self::StoreWentBack { .. }
            | Self::Paused { .. }
            | Self::Replaced
            | Self::Outdated { .. }
            | Self::AnotherRebuild { .. }
            | Self::NoGeneration { .. }
            | Self::NothingToCancel { .. }
            | Self::RebuildUnderWay { .. }
            | Self::RebuildFailed { .. }
            | Self::Cancelled { .. }
            | Self::NotOwned { .. }
            | Self::ParkedInRebuild { .. }
            | Self::Stopped
            | Self::NotParked { .. }
            | Self::WrongEvent { .. } => None,
        }
    }

    /// Whether it may pass by itself.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::ReadModel(error) => error.is_passing(),
            Self::Store(error) => error.is_passing(),
            _ => false,
        }
    }

    /// Whether it is a matter of configuration, which only a person can mend.
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            Self::ReadModel(error) => error.is_configuration(),
            Self::Broker(error) => error.is_configuration(),
            Self::Store(error) => error.is_configuration(),
            Self::Fence(_)
            | Self::StoreWentBack { .. }
            | Self::Paused { .. }
            | Self::Replaced
            | Self::Outdated { .. }
            | Self::AnotherRebuild { .. }
            | Self::NoGeneration { .. }
            | Self::NothingToCancel { .. }
            | Self::RebuildUnderWay { .. }
            | Self::RebuildFailed { .. }
            | Self::Cancelled { .. }
            | Self::NotOwned { .. }
            | Self::ParkedInRebuild { .. }
            | Self::Stopped
            | Self::NotParked { .. }
            | Self::WrongEvent { .. } => false,
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let exit = match &trouble {
            Trouble::ReadModel(error) => match error {
                mysql::Error::Login { .. } => Exit::Login,
                mysql::Error::Url => Exit::Configuration,
                mysql::Error::Unreachable { .. } | mysql::Error::Timeout { .. } => {
                    Exit::Unavailable
                }
                _ => Exit::Failed,
            },
            Trouble::Broker(error) => match error {
                broker::Error::Login { .. } => Exit::Login,
                broker::Error::Url
                | broker::Error::Mismatch { .. }
                | broker::Error::Name { .. } => Exit::Configuration,
                broker::Error::Unreachable { .. } | broker::Error::Timeout { .. } => {
                    Exit::Unavailable
                }
                _ => Exit::Failed,
            },
            Trouble::Store(error) => match error {
                event_store::Error::Login { .. } => Exit::Login,
                event_store::Error::Url => Exit::Configuration,
                event_store::Error::Unreachable { .. } | event_store::Error::Timeout { .. } => {
                    Exit::Unavailable
                }
                _ => Exit::Failed,
            },
            Trouble::Fence(_)
            | Trouble::StoreWentBack { .. }
            | Trouble::Paused { .. }
            | Trouble::Replaced
            | Trouble::Outdated { .. }
            | Trouble::AnotherRebuild { .. }
            | Trouble::NoGeneration { .. }
            | Trouble::NothingToCancel { .. }
            | Trouble::RebuildUnderWay { .. }
            | Trouble::RebuildFailed { .. }
            | Trouble::Cancelled { .. }
            | Trouble::NotOwned { .. }
            | Trouble::ParkedInRebuild { .. }
            | Trouble::Stopped => Exit::Failed,
            Trouble::NotParked { .. } | Trouble::WrongEvent { .. } => Exit::Data,
        };
        Self::new(exit, trouble)
    }
}
