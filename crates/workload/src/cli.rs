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
/// Exit codes: 0 done, 1 failure, 2 wrong command line, 64 wrong configuration, 65 a line that is not an
/// event, 69 server not reachable, 77 login refused.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Examples:
  workload generate --events 1000 --seed 7
  workload import events.jsonl.gz"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Append the events of a file.
    ///
    /// Each line is a JSON object with `stream_id`, `type`, `occurred_at` and `data`. The fields
    /// `event_id`, `schema_version` and `metadata` are optional. The file may be gzipped. The import
    /// stops at the first line that is not an event and reports its number; the events before it are
    /// kept. Importing a file again appends nothing twice.
    #[command(after_help = "Example:\n  workload import --batch 1000 events.jsonl.gz")]
    Import {
        /// The file with one event per line.
        file: PathBuf,
        #[command(flatten)]
        writing: Writing,
    },
    /// Append the events of an imaginary shop.
    ///
    /// Orders are placed, paid, packed, shipped, cancelled and refunded. A few orders are far more
    /// active than the others. The same seed gives the same events.
    #[command(after_help = "Example:\n  workload generate --events 100000 --rate 200 --seed 7")]
    Generate {
        /// Number of events.
        #[arg(long, default_value_t = 10_000)]
        events: u64,
        /// Number of orders. Each is a stream.
        #[arg(long, default_value_t = 2_500, value_parser = clap::value_parser!(u32).range(1..))]
        streams: u32,
        /// Events per second. Without it, as fast as possible.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Seed of the shop. Without it, a random one, which is printed at the end.
        #[arg(long)]
        seed: Option<u64>,
        /// Time of the first event.
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
    /// Number of writers, each with its own connection.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    writers: u16,
    /// Largest number of events in one transaction.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Print progress as lines of JSON.
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
    // A writer's error comes first: it is the reason why the reader stops.
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

/// Hands events over, at most `rate` per second, until a signal ends it. The events handed over by then
/// are still appended and counted.
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
