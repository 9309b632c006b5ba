//! Which versions of the servers run.

/// Where the private servers come from: a suite of Debian, and packages to unpack from it.
#[derive(Debug)]
pub(super) struct Packages {
    /// The folder in `target/servers`.
    pub(super) folder: &'static str,
    pub(super) suite: &'static str,
    pub(super) servers: &'static [&'static str],
    /// What the unpacked folder takes up, in MB.
    pub(super) megabytes: u32,
}

/// The packages of each server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Versions {
    pub(super) postgres: &'static Packages,
    pub(super) mysql: &'static Packages,
    pub(super) rabbitmq: &'static Packages,
    pub(super) pgbouncer: &'static Packages,
}

/// The newest of everything. MySQL is in no other suite.
const SID: Packages = Packages {
    folder: "tree",
    suite: "sid",
    servers: &[
        "postgresql-18",
        "postgresql-client-18",
        "pgbouncer",
        "mysql-server-core",
        "mysql-client-core",
        "rabbitmq-server",
    ],
    megabytes: 570,
};

/// PostgreSQL 15.
const BOOKWORM: Packages = Packages {
    folder: "tree-bookworm",
    suite: "bookworm",
    servers: &["postgresql-15", "postgresql-client-15"],
    megabytes: 300,
};

/// RabbitMQ 4.0.
const TRIXIE: Packages = Packages {
    folder: "tree-trixie",
    suite: "trixie",
    servers: &["rabbitmq-server"],
    megabytes: 130,
};

/// What development, benchmarks and chaos run on.
pub(super) const NEWEST: Versions =
    Versions { postgres: &SID, mysql: &SID, rabbitmq: &SID, pgbouncer: &SID };

/// The oldest supported versions that Debian has: README.md states them under "Requirements".
///
/// `pgbouncer` is not the one of bookworm: before 1.21 it has no prepared statements in transaction mode.
pub(super) const OLDEST: Versions =
    Versions { postgres: &BOOKWORM, mysql: &SID, rabbitmq: &TRIXIE, pgbouncer: &SID };

/// The same as container images. Debian has no MySQL 8.4.
pub(super) const OLDEST_IMAGES: [(&str, &str); 3] =
    [("postgres", "postgres:15"), ("rabbitmq", "rabbitmq:4.0-management"), ("mysql", "mysql:8.4")];
