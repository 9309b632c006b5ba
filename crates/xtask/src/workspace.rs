//! The workspace: its folders, cargo, and builds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    in_workspace(&mut command);
    command
}

/// A cargo command of the nightly toolchain, whichever toolchain started this program.
pub(crate) fn nightly() -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly");
    in_workspace(&mut command);
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

fn in_workspace(command: &mut Command) {
    command.current_dir(root());
    // The variables of this program would make cargo rebuild everything.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
}

/// Runs a command to its end.
///
/// # Errors
///
/// When it cannot be started or fails.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let status = command.status()?;
    if !status.success() {
        bail!("`{name} {}` failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Builds both daemons and the workload; returns their folder.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let mut arguments =
        vec!["build", "--bins", "-p", "outbox-relay", "-p", "projector", "-p", "workload"];
    if release {
        arguments.push("--release");
    }
    succeed(&mut cargo(&arguments))?;
    Ok(target().join(if release { "release" } else { "debug" }))
}

/// Builds both daemons and the workload for tests, which kill the projector at named places.
pub(crate) fn build_for_tests() -> Result<PathBuf> {
    let programs = ["-p", "outbox-relay", "-p", "projector", "-p", "workload"];
    let features = ["--features", "projector/failpoints"];
    succeed(cargo(&["build", "--bins"]).args(programs).args(features))?;
    Ok(target().join("debug"))
}
