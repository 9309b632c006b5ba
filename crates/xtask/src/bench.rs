//! Measuring, on servers that flush to disk.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::servers::Durable;
use crate::workspace::{build, cargo, root, succeed};

/// Measure, beside what bare programs reach with the same servers.
#[derive(Args)]
pub(crate) struct Bench {
    /// For the measuring program: relay, projector, rebuild, latency, append or all; --help shows more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let programs = build(true)?;
        succeed(&mut cargo(&["build", "--release", "--bin", "bench", "-p", "integration-tests"]))?;
        let durable = Durable::up()?;
        let mut bench = Command::new(programs.join("bench"));
        bench.current_dir(root()).args(&self.arguments);
        bench.envs(durable.servers.variables()).env("DAEMONS", &programs);
        bench.env("SERVER_PIDS", durable.servers.pids());
        succeed(&mut bench)
    }
}
