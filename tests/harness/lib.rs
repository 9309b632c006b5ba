//! Test support: private databases for each test, real daemons, and ways to disturb them.
//!
//! Environment variables name the servers. `cargo xtask test` starts the servers and sets the
//! variables.

mod alarm;
mod daemon;
mod disturber;
mod eventually;
mod pgbouncer;
mod postgres;
mod proxy;
mod raw;
mod stack;
mod tap;

pub use alarm::Alarm;
pub use daemon::{Daemon, Program};
pub use disturber::Disturber;
pub use eventually::{eventually, within};
pub use pgbouncer::PgBouncer;
pub use postgres::PostgresServer;
pub use proxy::{Cut, Mode, Proxy, Side};
pub use raw::Raw;
pub use stack::{Stack, append, event, root, write_projection};
pub use tap::{Seen, Tap};
