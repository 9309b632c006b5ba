//! Everything that finds mistakes without running the program.

use anyhow::{Result, bail};
use clap::Args;

use crate::chaos::check_bugs;
use crate::workspace::{cargo, succeed};

/// Crates that must not be in the dependency tree: OpenSSL, because rustls is used throughout, and the
/// crate with RUSTSEC-2023-0071, which has no fix.
const BANNED: [&str; 4] = ["openssl", "openssl-sys", "native-tls", "rsa"];

/// Check format, lints, documentation, banned dependencies and the patches of `chaos --prove`.
#[derive(Args)]
#[command(after_help = "Example:
  cargo xtask lint    then `cargo fmt --all` fixes the format")]
pub(crate) struct Lint;

pub(crate) fn run() -> Result<()> {
    succeed(&mut cargo(&["fmt", "--all", "--check"]))?;
    succeed(&mut cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    succeed(&mut cargo(&clippy))?;
    let document = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    succeed(cargo(&document).env("RUSTDOCFLAGS", "-D warnings"))?;
    let tree =
        cargo(&["tree", "--workspace", "--prefix", "none", "--edges", "normal,build"]).output()?;
    if !tree.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&tree.stderr));
    }
    let tree = String::from_utf8(tree.stdout)?;
    let banned = tree.lines().filter_map(|line| line.split(' ').next());
    if let Some(name) = banned.into_iter().find(|name| BANNED.contains(name)) {
        bail!("{name} is in the dependency tree: `cargo tree -i {name}` says why");
    }
    check_bugs()?;
    println!("no mistakes found");
    Ok(())
}
