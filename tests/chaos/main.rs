//! Breaks everything that can break while events flow, and looks for events that were lost, doubled, put
//! in another order or skipped.
//!
//! `cargo xtask chaos` starts servers to be broken, and runs this. The schedule of faults follows from a
//! seed; what they meet does not, since processes and networks have their own time.
#![expect(clippy::print_stdout, reason = "what happens, and the verdict")]

mod account;
mod broker;
mod campaign;
mod checker;
mod databases;
mod faults;
mod fleet;
mod inject;
mod probe;
mod report;
mod schedule;
mod servers;
mod sights;
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

/// Breaks things, and looks what became of the events.
#[derive(Parser, Clone)]
struct Arguments {
    /// What the schedule and the workload follow from.
    #[arg(long, default_value_t = rand::random::<u32>().into())]
    seed: u64,
    /// How many faults; some more when something was not seen that a whole campaign must see.
    #[arg(long, default_value_t = 60)]
    faults: usize,
    /// How many events, at least; they are spread over the faults.
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    /// Faults at the same time, at most.
    #[arg(long, default_value_t = 3)]
    at_once: usize,
    /// How many relays; two to four, by the seed, if nothing is said.
    #[arg(long)]
    relays: Option<usize>,
    /// How many projectors; the same.
    #[arg(long)]
    projectors: Option<usize>,
    /// Only these faults; the run need not see everything that a whole campaign must see.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Without the sweeper, which would repair what somebody else has lost.
    #[arg(long)]
    no_sweep: bool,
    /// How long, in seconds, events may need after a fault, and everything after the last one.
    #[arg(long, default_value_t = 240)]
    patience: u64,
    /// Write a report here.
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

    /// Far longer than a campaign takes that does not hang.
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
