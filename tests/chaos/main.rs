//! Injects faults everywhere while events flow, and searches for events that were lost, doubled, reordered
//! or skipped.
//!
//! `cargo xtask chaos` starts servers that may be broken, and runs this program. A seed determines the
//! schedule of faults. It does not determine their effects, which depend on the timing of processes and
//! networks.
#![expect(clippy::print_stdout, reason = "progress and verdict")]

mod account;
mod broker;
mod campaign;
mod checker;
mod coverage;
mod databases;
mod faults;
mod findings;
mod fleet;
mod inject;
mod probe;
mod report;
mod schedule;
mod servers;
mod wire;
mod writers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::timeout;

use self::faults::Kind;

/// Injects faults, and checks every event.
#[derive(Parser, Clone)]
struct Arguments {
    /// The seed of the schedule and the workload.
    #[arg(long, default_value_t = rand::random::<u32>().into())]
    seed: u64,
    /// The number of faults. A campaign injects more if it has not covered everything that it must.
    #[arg(long, default_value_t = 60)]
    faults: usize,
    /// The least number of events; they are spread over the faults.
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    /// The most faults at the same time.
    #[arg(long, default_value_t = 3)]
    at_once: usize,
    /// The number of relays; by default two to four, depending on the seed.
    #[arg(long)]
    relays: Option<usize>,
    /// The number of projectors; by default two to four, depending on the seed.
    #[arg(long)]
    projectors: Option<usize>,
    /// Only these faults. Such a run need not cover everything that a whole campaign must.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Without the sweeper, which would repair the losses of other parts.
    #[arg(long)]
    no_sweep: bool,
    /// How long events may take after a fault, and everything after the last one, in seconds.
    #[arg(long, default_value_t = 240)]
    patience: u64,
    /// Write the report to this file.
    #[arg(long)]
    report: Option<PathBuf>,
}

impl Arguments {
    fn relays(&self) -> usize {
        self.relays.unwrap_or_else(|| self.drawn(0))
    }

    fn projectors(&self) -> usize {
        self.projectors.unwrap_or_else(|| self.drawn(1))
    }

    fn drawn(&self, which: u64) -> usize {
        ChaCha8Rng::seed_from_u64(self.seed.wrapping_sub(which)).random_range(2..=4)
    }

    /// Far longer than any campaign takes unless it hangs.
    fn limit(&self) -> Duration {
        let faults = u64::try_from(self.faults).unwrap_or(u64::MAX).saturating_mul(20);
        Duration::from_secs(faults.saturating_add(3 * self.patience + self.events / 50))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!(
        "seed {}, {} relays, {} projectors",
        arguments.seed,
        arguments.relays(),
        arguments.projectors()
    );
    let Ok(report) = timeout(arguments.limit(), campaign::run(&arguments)).await else {
        println!("the campaign hangs: it has not ended after {:?}", arguments.limit());
        return ExitCode::FAILURE;
    };
    println!("\n{report}");
    if let Some(path) = &arguments.report {
        std::fs::write(path, report.to_string()).expect("the report is written");
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
