//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};
use daemon::cli::end;
use daemon::{Exit, Failure};
use event_store::Options;
use secrecy::SecretString;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::import::import;
use crate::progress::{Progress, Show};
use crate::shop::Shop;
use crate::writers::{Input, NewEvent, Writers};

/// Fills the event store with sample events.
///
/// Exit codes: 0 done, 1 failure, 2 wrong command line, 64 wrong configuration, 65 a bad line, 69
/// server not reachable, 77 login refused.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Append the events of a file.
    ///
    /// One JSON object a line with `stream_id`, `type`, `occurred_at` and `data`, and if you like
    /// `event_id`, `schema_version` and `metadata`; plain or gzipped. A bad line ends the import
    /// with its number; the lines before it are kept. Importing the same file again appends nothing
    /// twice.
    Import {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        writing: Writing,
    },
    /// Append the events of a made-up shop.
    ///
    /// Orders are placed, paid, packed, shipped, cancelled and refunded; a few are far more active
    /// than the rest. The same seed gives the same events.
    Generate {
        /// How many events.
        #[arg(long, default_value_t = 10_000)]
        events: u64,
        /// How many orders, each a stream.
        #[arg(long, default_value_t = 2_500, value_parser = clap::value_parser!(u32).range(1..))]
        streams: u32,
        /// Events a second; as fast as it goes when absent.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Which shop; random when absent.
        #[arg(long)]
        seed: Option<u64>,
        /// When the first event happens.
        #[arg(long, default_value = "2026-01-01T00:00:00Z")]
        start: DateTime<Utc>,
        #[command(flatten)]
        writing: Writing,
    },
}

#[derive(Args)]
struct Writing {
    /// The event store: postgres://user:password@host:port/database
    #[arg(long, env = "EVENT_STORE_URL", hide_env_values = true)]
    event_store_url: String,
    /// Writers at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    writers: u16,
    /// Events appended in one transaction at most.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Show progress as lines of JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the program.
pub fn main() -> ExitCode {
    end(run(Arguments::parse().command))
}

#[tokio::main]
async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Import { file, writing } => run_import(file, writing).await,
        Command::Generate { events, streams, rate, seed, start, writing } => {
            let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
            let shop = Shop::new(seed, streams, start);
            run_generate(shop, events, rate, seed, writing).await
        }
    }
}

async fn run_import(file: PathBuf, writing: Writing) -> Result<(), Failure> {
    let length = std::fs::metadata(&file)
        .with_context(|| format!("reading {}", file.display()))
        .map_err(|error| Failure::new(Exit::Data, error))?
        .len();
    let mut writers = writing.start().await?;
    let (input, read) = (writers.input(), Arc::new(AtomicU64::new(0)));
    let appended = writers.appended();
    let progress = Progress { show: writing.show(), length, place: Arc::clone(&read), appended };
    let reader = tokio::task::spawn_blocking(move || import(&file, &input, &read));
    let (read, written) = progress.during(async { tokio::join!(reader, writers.finish()) }).await;
    // What a writer says comes first: the reader stops because of it.
    let appended = written?;
    read.context("the reader panicked")??;
    report(&format!("{appended} events imported"), &writing);
    Ok(())
}

async fn run_generate(
    shop: Shop,
    events: u64,
    rate: Option<u32>,
    seed: u64,
    writing: Writing,
) -> Result<(), Failure> {
    let mut writers = writing.start().await?;
    let input = writers.input();
    let appended = writers.appended();
    let place = Arc::clone(&appended);
    let progress = Progress { show: writing.show(), length: events, place, appended };
    let count = usize::try_from(events).unwrap_or(usize::MAX);
    let feed = feed(shop.take(count), input, rate);
    let ((), written) = progress.during(async { tokio::join!(feed, writers.finish()) }).await;
    report(&format!("{} events generated with seed {seed}", written?), &writing);
    Ok(())
}

/// Hands events over, no faster than `rate` a second, until a signal ends it: what was handed over by
/// then is appended and counted.
async fn feed(events: impl Iterator<Item = NewEvent>, input: Input, rate: Option<u32>) {
    tokio::select! {
        () = hand_over(events, input, rate) => {}
        () = stopped() => {}
    }
}

async fn stopped() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = ctrl_c() => {}
        },
        Err(_) => drop(ctrl_c().await),
    }
}

async fn hand_over(events: impl Iterator<Item = NewEvent>, input: Input, rate: Option<u32>) {
    let started = Instant::now();
    for (number, event) in (0_u32..).zip(events) {
        if let Some(rate) = rate {
            sleep_until(started + Duration::from_secs(1) * number / rate).await;
        }
        if !input.send(event).await {
            return;
        }
    }
}

impl Writing {
    async fn start(&self) -> Result<Writers, Failure> {
        let url = SecretString::from(self.event_store_url.clone());
        let options = Options::parse(&url, "workload")
            .map_err(|error| Failure::new(Exit::Configuration, error))?;
        Writers::start(&options, self.writers.into(), self.batch.into()).await
    }

    fn show(&self) -> Show {
        if self.json { Show::Json } else { Show::Bar }
    }
}

#[expect(clippy::print_stderr, reason = "the result of a command")]
fn report(text: &str, writing: &Writing) {
    if !writing.json {
        eprintln!("{text}");
    }
}
