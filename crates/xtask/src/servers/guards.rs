//! Servers for the time of one command.

use std::fs::{self, File};

use anyhow::{Result, bail};

use super::compose::Compose;
use super::private::{self, Purpose};
use super::{NEEDED, Origin, Servers, down, folder, running, turn, up};

/// Servers for development and tests. They are stopped with this if this has started them.
pub(crate) struct Borrowed {
    pub(crate) servers: Servers,
    ours: bool,
}

impl Borrowed {
    pub(crate) fn up() -> Result<Self> {
        let (servers, ours) = up()?;
        Ok(Self { servers, ours })
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.ours {
            report(down());
        }
    }
}

/// The oldest supported versions of the servers. They end with this.
pub(crate) struct Oldest {
    pub(crate) servers: Servers,
    compose: Compose,
    /// One at a time: the next would end these.
    _alone: File,
}

impl Oldest {
    pub(crate) fn up() -> Result<Self> {
        if running()?.is_some_and(|servers| servers.origin == Origin::Environment) {
            bail!("the oldest servers are started here: unset {}", NEEDED.join(", "));
        }
        let alone = alone("oldest.lock")?;
        let _turn = turn()?;
        let compose = Compose::oldest(&folder())?;
        let servers = compose.up(&folder()).or_else(|why| {
            eprintln!("docker compose is not used: {why:#}");
            private::up(&folder(), Purpose::Oldest)
        })?;
        Ok(Self { servers, compose, _alone: alone })
    }
}

impl Drop for Oldest {
    fn drop(&mut self) {
        report(match self.servers.origin {
            Origin::Compose => self.compose.down(),
            _ => private::end(&folder(), Purpose::Oldest),
        });
    }
}

/// Servers that flush to disk, for benchmarks: those that the environment names, or new ones that end
/// with this.
pub(crate) struct Durable {
    pub(crate) servers: Servers,
}

impl Durable {
    pub(crate) fn up() -> Result<Self> {
        if let Some(servers) = running()?.filter(|servers| servers.origin == Origin::Environment) {
            return Ok(Self { servers });
        }
        let _turn = turn()?;
        Ok(Self { servers: private::up(&folder(), Purpose::Bench)? })
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if self.servers.origin == Origin::Private {
            self.servers.end();
            report(private::remove_data(&folder(), Purpose::Bench));
        }
    }
}

/// Private servers that are there to be broken. They end with this.
pub(crate) struct Breakable {
    pub(crate) servers: Servers,
    /// One at a time: the next would end these.
    _alone: File,
}

impl Breakable {
    pub(crate) fn up() -> Result<Self> {
        let alone = alone("chaos.lock")?;
        let _turn = turn()?;
        Ok(Self { servers: private::up(&folder(), Purpose::Chaos)?, _alone: alone })
    }
}

impl Drop for Breakable {
    fn drop(&mut self) {
        report(private::end(&folder(), Purpose::Chaos));
    }
}

fn alone(lock: &str) -> Result<File> {
    fs::create_dir_all(folder())?;
    let file = File::create(folder().join(lock))?;
    file.lock()?;
    Ok(file)
}

fn report(ended: Result<()>) {
    if let Err(error) = ended {
        eprintln!("the servers or their data could not be removed: {error:#}");
    }
}
