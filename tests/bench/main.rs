//! How fast it is, beside what a bare program reaches with the same servers and the same payloads.
//!
//! `cargo xtask bench` starts servers that flush to disk, builds with optimisation, and runs this. Machines
//! differ, so only the ratios of one run count; ours and the limit take turns.
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

/// Measures.
#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Part::All])]
    parts: Vec<Part>,
    #[command(flatten)]
    scale: Scale,
    /// Write the results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the results as Markdown.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[derive(Args, Clone, Copy)]
struct Scale {
    /// How often ours and the limit take turns.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Events of the relay and the projector.
    #[arg(long, default_value_t = 200_000)]
    events: u32,
    /// Events of the relay's long backlog; 0 leaves that out.
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u32,
    /// Events of the rebuild.
    #[arg(long, default_value_t = 1_000_000)]
    history: u32,
    /// Seconds of each measurement of latency.
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
