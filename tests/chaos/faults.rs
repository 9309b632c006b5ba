//! The faults.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use harness::Side;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL of a relay, then a new one.
    KillRelay,
    /// SIGTERM of a relay, then a new one.
    StopRelay,
    /// SIGSTOP of a relay, later SIGCONT.
    FreezeRelay,
    /// The same for projectors.
    KillProjector,
    StopProjector,
    FreezeProjector,
    /// A rebuild, which is not a fault by itself.
    Rebuild,
    /// SIGKILL of a rebuild; any projector continues it.
    KillRebuild,
    /// SIGTERM of a rebuild; any projector continues it.
    StopRebuild,
    /// SIGSTOP of a rebuild, later SIGCONT.
    FreezeRebuild,
    /// Every connection is reset.
    Reset,
    /// Every connection is closed in one direction.
    HalfClose,
    /// No bytes pass.
    BlackHole,
    /// No bytes pass in one direction.
    BlackHoleOneWay,
    /// All bytes are delayed.
    Latency,
    /// All bytes pass in small pieces.
    Slice,
    /// A connection is reset instead of delivering a COMMIT.
    CutAtCommit,
    /// A connection is reset instead of delivering the answer to a COMMIT.
    CutAtCommitAnswer,
    /// A connection is reset instead of delivering a confirm.
    CutAtConfirm,
    /// A server is shut down cleanly and started again.
    RestartServer,
    /// A server is killed and started again.
    KillServer,
    /// SIGSTOP of a server, later SIGCONT.
    FreezeServer,
    /// The file system of a server is full.
    FillDisk,
    /// The server ends sessions.
    EndSessions,
    /// A foreign transaction locks rows in another order.
    Deadlock,
    /// A foreign transaction locks rows for longer than a batch waits.
    HoldRows,
    /// The broker is short of memory and accepts no messages.
    MemoryAlarm,
    /// The broker is short of disk space and accepts no messages.
    DiskAlarm,
    /// A queue is deleted with its messages.
    DeleteQueue,
    /// A queue is purged.
    PurgeQueue,
    /// All bindings of the exchange are removed, or those of one projection.
    RemoveBindings,
    /// A queue refuses all messages, or some.
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

    /// The name of its folder and its scripts.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::MySql => "mysql",
        }
    }
}

impl Kind {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The servers that it affects, or the connections to them.
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

    /// Whether it is a rebuild: not a fault by itself, but something that faults can disturb.
    pub(crate) fn is_rebuild(self) -> bool {
        matches!(self, Self::Rebuild | Self::KillRebuild | Self::StopRebuild | Self::FreezeRebuild)
    }
}

/// A fault, as it was drawn from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) number: usize,
    pub(crate) kind: Kind,
    pub(crate) server: Option<Server>,
    /// Which daemon, queue or projection, modulo their number.
    pub(crate) which: usize,
    /// Whether the connections of all daemons to a server are affected, not those of one.
    pub(crate) everybody: bool,
    pub(crate) side: Side,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// The shortest time until the next fault begins.
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
