//! Test support: servers' databases for one test alone, real daemons, and ways to disturb them.
//!
//! The servers are named by the environment; `cargo xtask test` starts them and sets it.

mod alarm;
mod daemon;
mod disturber;
mod eventually;
mod pgbouncer;
mod proxy;
mod raw;
mod stack;
mod tap;

pub use alarm::Alarm;
pub use daemon::{Daemon, Program};
pub use disturber::Disturber;
pub use eventually::{eventually, within};
pub use pgbouncer::PgBouncer;
pub use proxy::{Cut, Mode, Proxy, Side};
pub use raw::Raw;
pub use stack::{Stack, append, event, root};
pub use tap::{Seen, Tap};
