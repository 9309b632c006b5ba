//! Where servers store their data.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rustix::process::getuid;

use super::{Purpose, SERVERS};
use crate::workspace::succeed;

/// More than a campaign of a million events fills.
const DISK_SIZE: &str = "6g";

/// Creates the folders, each a file system of its own for servers that are there to be broken.
pub(super) fn create_data(data: &Path, purpose: Purpose) -> Result<()> {
    if purpose == Purpose::Chaos {
        for server in SERVERS {
            let disk = data.join(server);
            fs::create_dir_all(&disk)?;
            mount(&disk)?;
        }
    }
    for part in ["postgres", "mysql", "rabbitmq/db", "rabbitmq/log", "rabbitmq/generated", "tools"]
    {
        fs::create_dir_all(data.join(part))?;
    }
    Ok(())
}

/// Removes what the servers have stored.
pub(in crate::servers) fn remove_data(folder: &Path, purpose: Purpose) -> Result<()> {
    let data = purpose.data(folder);
    for server in SERVERS {
        let disk = data.join(server);
        if is_mounted(&disk)? {
            succeed(Command::new("umount").arg(disk))?;
        }
    }
    if data.exists() { Ok(fs::remove_dir_all(data)?) } else { Ok(()) }
}

/// Mounts a file system in memory that can be filled up. Users who may not mount do without.
fn mount(folder: &Path) -> Result<()> {
    if !getuid().is_root() {
        return Ok(());
    }
    let size = format!("size={DISK_SIZE},mode=0755");
    let mut mount = Command::new("mount");
    if !mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).status()?.success() {
        eprintln!("{} is not a file system of its own: it cannot be filled up", folder.display());
    }
    Ok(())
}

fn is_mounted(folder: &Path) -> Result<bool> {
    let Ok(folder) = folder.canonicalize() else { return Ok(false) };
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let at = folder.display().to_string();
    Ok(mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(at.as_str())))
}
