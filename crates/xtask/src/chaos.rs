//! Campaigns of faults, on servers of their own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::servers::Breakable;
use crate::workspace::{build, cargo, root, succeed};

/// Break everything that can break, and look for events that are lost, doubled or out of order.
#[derive(Args)]
pub(crate) struct Chaos {
    /// With optimisation, for long campaigns.
    #[arg(long)]
    release: bool,
    /// For the program that breaks things; --help shows more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Chaos {
    pub(crate) fn run(&self) -> Result<()> {
        let programs = build(self.release)?;
        let mut chaos = campaign(&programs, self.release)?;
        let breakable = Breakable::up()?;
        chaos.args(&self.arguments).envs(breakable.servers.variables());
        succeed(&mut chaos)
    }
}

/// The program that breaks things, with some daemons.
fn campaign(programs: &PathBuf, release: bool) -> Result<Command> {
    let mut arguments = vec!["build", "--bin", "chaos", "-p", "integration-tests"];
    if release {
        arguments.push("--release");
    }
    succeed(&mut cargo(&arguments))?;
    let mut chaos = Command::new(programs.join("chaos"));
    chaos.current_dir(root()).env("DAEMONS", programs);
    Ok(chaos)
}
