//! Unpacking servers from Debian's packages.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::getuid;

use super::versions::Packages;
use crate::workspace::succeed;

/// What the servers and their start scripts need.
const BASE: [&str; 11] = [
    "base-files",
    "dash",
    "bash",
    "coreutils",
    "sed",
    "grep",
    "mawk",
    "hostname",
    "libc-bin",
    "procps",
    "libeatmydata1",
];
/// Programs and their packages.
const TOOLS: [(&str, &str); 3] =
    [("mmdebstrap", "mmdebstrap"), ("bwrap", "bubblewrap"), ("patchelf", "patchelf")];
/// Before trixie, packages kept files in `/lib` and `/bin`; with this they go to `/usr`.
const MERGE_USR: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// Unpacks packages into a folder, unless they are there.
pub(super) fn require(packages: &Packages, root: &Path) -> Result<()> {
    let list = [&BASE, packages.servers].concat().join(",");
    // Another version of this program may have unpacked other packages.
    let unpacked = root.join("packages");
    if fs::read_to_string(&unpacked).ok().as_deref() == Some(&list) {
        return Ok(());
    }
    require_tools()?;
    unpack(packages, &list, root)?;
    Ok(fs::write(unpacked, list)?)
}

/// Whether a command succeeds; it prints nothing.
pub(super) fn is_successful(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Installs the small tools that unpack packages, or says how to.
fn require_tools() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| !is_successful(Command::new(program).arg("--version")))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_successful(Command::new("apt-get").arg("--version")) {
        bail!(
            "this machine has neither a container engine nor Debian's apt-get to get servers with: \
             start servers yourself and set EVENT_STORE_URL, AMQP_URL, READ_MODEL_URL and \
             RABBITMQ_MANAGEMENT_URL"
        );
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !getuid().is_root() {
        bail!("run `sudo {install}` once, then repeat this command");
    }
    eprintln!("installing {}", missing.join(", "));
    let quiet = format!("{{ apt-get update && {install}; }} >/dev/null");
    succeed(Command::new("sh").args(["-c", &quiet]).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The mirror that this machine's apt uses; it has the other suites too.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["Identifier: Packages", "Origin: Debian", "Component: main"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().next().map(str::to_owned).context("apt has no Debian mirror: run `apt-get update`")
}

fn unpack(packages: &Packages, list: &str, root: &Path) -> Result<()> {
    let mirror = mirror().or_else(|_| {
        if getuid().is_root() {
            succeed(Command::new("apt-get").args(["-qq", "update"]))?;
        }
        mirror()
    })?;
    let Packages { suite, servers, megabytes, .. } = packages;
    eprintln!("unpacking {} from Debian {suite} (about {megabytes} MB, once)", servers.join(", "));
    let new = root.with_extension("new");
    remove(&new)?;
    let log = root.with_extension("log");
    let output = fs::File::create(&log)?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=chrootless", "--variant=extract", "--components=main"])
        // A frozen mirror of sid passes its expiry date within a week.
        .args(["--aptopt=Acquire::Check-Valid-Until \"false\""])
        .args([
            "--aptopt=Acquire::Languages \"none\"",
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        .arg(format!("--include={list}"));
    if Path::new(MERGE_USR).is_dir() {
        command.arg(format!("--hook-dir={MERGE_USR}"));
    }
    command.arg(suite).arg(&new).arg(mirror).stdout(output.try_clone()?).stderr(output);
    succeed(&mut command)
        .with_context(|| format!("unpacking the servers: see {}", log.display()))?;
    for folder in ["doc", "man", "locale", "i18n", "info", "systemd"] {
        remove(&new.join("usr/share").join(folder))?;
    }
    for file in ["passwd", "group", "hosts", "resolv.conf"] {
        let path = new.join("etc").join(file);
        if !path.exists() {
            fs::write(path, "")?;
        }
    }
    // The scripts of the packages did not run, so the cache of the libraries is missing.
    let own = new.join("usr/sbin/ldconfig");
    if !is_successful(Command::new(own).arg("-r").arg(&new)) {
        is_successful(Command::new("/sbin/ldconfig").arg("-r").arg(&new));
    }
    remove(root)?;
    fs::rename(&new, root)?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() { Ok(fs::remove_dir_all(folder)?) } else { Ok(()) }
}
