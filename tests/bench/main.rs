//! Compares the daemons with bare programs on the same servers and the same payloads.
//!
//! `cargo xtask bench` starts servers that flush to disk, builds with optimisation, and runs this program.
//! Machines differ, so only the ratios of one run count. Daemon and bare program take turns.
#![expect(clippy::print_stdout, reason = "the results")]

mod append;
mod latency;
mod limits;
mod process;
mod projector;
mod relay;
mod report;

use std::fs;
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use self::report::Report;

/// Measures the daemons beside bare programs.
#[derive(Parser)]
struct Arguments {
    /// The parts to measure.
    #[arg(value_enum, default_values_t = [Part::All])]
    parts: Vec<Part>,
    #[command(flatten)]
    scale: Scale,
    /// Write the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the results to this file, as Markdown.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[derive(Args, Clone, Copy)]
struct Scale {
    /// How often daemon and bare program take turns.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Events per run of the relay and the projector.
    #[arg(long, default_value_t = 200_000)]
    events: u32,
    /// Events of the long backlogs of relay and projector; 0 skips them.
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u32,
    /// Events of the longer rebuild; the shorter one has a tenth.
    #[arg(long, default_value_t = 1_000_000)]
    history: u32,
    /// Seconds per measurement of latency.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Relay,
    Projector,
    Rebuild,
    Latency,
    Append,
    All,
}

#[tokio::main]
async fn main() {
    let Arguments { parts, scale, json, markdown } = Arguments::parse();
    let wanted = |part| parts.contains(&part) || parts.contains(&Part::All);
    let mut report = Report::default();
    if wanted(Part::Append) {
        append::run(scale, &mut report).await;
    }
    if wanted(Part::Relay) {
        relay::run(scale, &mut report).await;
    }
    if wanted(Part::Projector) {
        projector::run(scale, &mut report).await;
    }
    if wanted(Part::Rebuild) {
        projector::run_rebuild(scale, &mut report).await;
    }
    if wanted(Part::Latency) {
        latency::run(scale, &mut report).await;
    }
    println!("\n{}", report.markdown());
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report).expect("JSON");
        fs::write(path, text).expect("the results are written");
    }
    if let Some(path) = markdown {
        fs::write(path, report.document()).expect("the results are written");
    }
}
