//! Benchmarks, on servers that flush to disk.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::servers::Durable;
use crate::workspace::{build, cargo, root, succeed};

/// Measure the daemons, and for comparison minimal programs on the same servers.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask bench relay              throughput of the relay; about 10 minutes
  cargo xtask bench all                everything; about 45 minutes
  cargo xtask bench latency --help     the options of the measuring program")]
pub(crate) struct Bench {
    /// Arguments of the measuring program: relay, projector, rebuild, latency, append or all.
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
