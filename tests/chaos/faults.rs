//! What can be broken.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use harness::Side;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL of a relay, and a new one.
    KillRelay,
    /// SIGTERM of a relay, and a new one.
    StopRelay,
    /// SIGSTOP and SIGCONT of a relay.
    FreezeRelay,
    /// The same for projectors.
    KillProjector,
    StopProjector,
    FreezeProjector,
    /// A rebuild, which is no fault by itself.
    Rebuild,
    /// SIGKILL of a rebuild; any projector goes on with it.
    KillRebuild,
    /// SIGTERM of a rebuild; the same.
    StopRebuild,
    /// A rebuild that stands still for a while.
    FreezeRebuild,
    /// Every connection is reset.
    Reset,
    /// One side of every connection is told that nothing more comes.
    HalfClose,
    /// Nothing comes through.
    BlackHole,
    /// Nothing comes through in one direction.
    BlackHoleOneWay,
    /// Everything comes late.
    Latency,
    /// Everything comes in pieces.
    Slice,
    /// A connection is reset instead of delivering a COMMIT.
    CutAtCommit,
    /// A connection is reset instead of delivering the answer to a COMMIT.
    CutAtCommitAnswer,
    /// A connection is reset instead of delivering a confirm.
    CutAtConfirm,
    /// A server is stopped in order and started again.
    RestartServer,
    /// A server is killed and started again.
    KillServer,
    /// A server stands still.
    FreezeServer,
    /// The file system of a server is full.
    FillDisk,
    /// Sessions are ended by the server.
    EndSessions,
    /// Somebody locks rows in another order.
    Deadlock,
    /// Somebody locks rows for longer than anybody waits.
    HoldRows,
    /// The broker is short of memory, and takes no messages.
    MemoryAlarm,
    /// The broker is short of disk, and takes no messages.
    DiskAlarm,
    /// A queue is deleted, with what is in it.
    DeleteQueue,
    /// A queue is emptied.
    PurgeQueue,
    /// No queue is bound to the exchange, or none of one projection.
    RemoveBindings,
    /// A queue refuses messages, all or some.
    RefuseMessages,
}

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Server {
    PostgreSql,
    RabbitMq,
    MySql,
}

impl Server {
    pub(crate) const ALL: [Self; 3] = [Self::PostgreSql, Self::RabbitMq, Self::MySql];

    /// Its folder and its scripts are called so.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::MySql => "mysql",
        }
    }
}

impl Kind {
    /// The name that the command line knows it by.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The servers that it is done to, or to the way to them.
    pub(crate) fn servers(self) -> &'static [Server] {
        match self {
            Self::Reset
            | Self::HalfClose
            | Self::BlackHole
            | Self::BlackHoleOneWay
            | Self::Latency
            | Self::Slice
            | Self::RestartServer
            | Self::KillServer
            | Self::FreezeServer
            | Self::FillDisk => &Server::ALL,
            Self::CutAtCommit | Self::CutAtCommitAnswer | Self::EndSessions => {
                &[Server::PostgreSql, Server::MySql]
            }
            Self::CutAtConfirm
            | Self::MemoryAlarm
            | Self::DiskAlarm
            | Self::DeleteQueue
            | Self::PurgeQueue
            | Self::RemoveBindings
            | Self::RefuseMessages => &[Server::RabbitMq],
            Self::Deadlock | Self::HoldRows => &[Server::MySql],
            Self::KillRelay
            | Self::StopRelay
            | Self::FreezeRelay
            | Self::KillProjector
            | Self::StopProjector
            | Self::FreezeProjector
            | Self::Rebuild
            | Self::KillRebuild
            | Self::StopRebuild
            | Self::FreezeRebuild => &[],
        }
    }

    /// Whether it is a rebuild, by itself no fault but something to disturb.
    pub(crate) fn is_rebuild(self) -> bool {
        matches!(self, Self::Rebuild | Self::KillRebuild | Self::StopRebuild | Self::FreezeRebuild)
    }
}

/// A fault, as it was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) number: usize,
    pub(crate) kind: Kind,
    pub(crate) server: Option<Server>,
    /// Which daemon, queue or projection: modulo how many there are.
    pub(crate) which: usize,
    /// Whether the way of all daemons to a server is meant, and not that of one.
    pub(crate) everybody: bool,
    pub(crate) side: Side,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// How long after it the next one begins, at the soonest.
    pub(crate) pause: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{} {}", self.number, self.kind.name())?;
        if let Some(server) = self.server {
            write!(formatter, " {}", server.name())?;
        }
        Ok(())
    }
}
