//! Fuzzing, with a nightly compiler and cargo-fuzz.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::{nightly, root, succeed, target};

/// Feed malformed messages, projections and parameters to the code that parses them.
///
/// Starts from `fuzz/seeds` and from the inputs that earlier runs kept in `fuzz/corpus`. An input that
/// breaks something is written to `fuzz/artifacts`: fix the code and move the input to the seeds, which
/// are tests too. Needs a nightly toolchain and cargo-fuzz.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz                         all targets, 60 seconds each
  cargo xtask fuzz --seconds 600 message   one target, for longer")]
pub(crate) struct Fuzz {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Names of files in `fuzz/fuzz_targets`; all of them if none is named.
    targets: Vec<String>,
}

/// A file system in memory, on machines that have one.
const MEMORY: &str = "/dev/shm";

/// The longest input: as long as a large payload.
const MAX_LEN: usize = 256 << 10;

/// The result of one target.
struct Outcome {
    executions: u64,
    coverage: u64,
    log: String,
    /// The input that breaks something; empty if none was kept.
    found: Option<String>,
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<()> {
        let targets = self.targets()?;
        require_tools()?;
        // With the lock file of the workspace, so that the fuzzed dependencies are the shipped ones.
        fs::copy(root().join("Cargo.lock"), folder().join("Cargo.lock"))?;
        succeed(&mut fuzz("build"))?;
        let mut broken = Vec::new();
        for target in targets {
            let outcome = run(&target, self.seconds)?;
            let Outcome { executions, coverage, log, found } = outcome;
            let verdict = found.as_ref().map_or("nothing found", |_| "FOUND A BUG");
            println!("{target:<12} {executions:>10} executions  {coverage:>6} edges  {verdict}");
            if let Some(input) = found {
                println!("{log}\nthe input: {input}");
                broken.push(target);
            }
        }
        if !broken.is_empty() {
            bail!("bugs found by {}", broken.join(", "));
        }
        Ok(())
    }

    fn targets(&self) -> Result<BTreeSet<String>> {
        let mut known = BTreeSet::new();
        for file in fs::read_dir(folder().join("fuzz_targets"))? {
            let name = file?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            known.insert(name);
        }
        if let Some(unknown) = self.targets.iter().find(|target| !known.contains(*target)) {
            let known: Vec<_> = known.into_iter().collect();
            bail!("{unknown} is not a target; the targets are {}", known.join(", "));
        }
        Ok(if self.targets.is_empty() { known } else { self.targets.iter().cloned().collect() })
    }
}

fn folder() -> PathBuf {
    root().join("fuzz")
}

/// Names the missing tools; it does not install them.
fn require_tools() -> Result<()> {
    let answers = |command: &mut Command| {
        let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
        silent.status().is_ok_and(|status| status.success())
    };
    let mut missing = Vec::new();
    if !answers(nightly().arg("--version")) {
        missing.push("rustup toolchain install nightly");
    }
    if !answers(Command::new("cargo-fuzz").args(["fuzz", "--version"])) {
        missing.push("cargo install cargo-fuzz --locked");
    }
    if !missing.is_empty() {
        bail!("tools are missing; install them with\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn fuzz(command: &str) -> Command {
    let mut fuzz = nightly();
    fuzz.args(["fuzz", command, "--fuzz-dir"]).arg(folder());
    fuzz.arg("--target-dir").arg(target().join("fuzz"));
    // Sanitizers find mistakes in unsafe code. The workspace has none, and they halve the number of
    // executions.
    fuzz.args(["--sanitizer", "none"]);
    fuzz
}

fn run(name: &str, seconds: u64) -> Result<Outcome> {
    let (corpus, seeds) = (folder().join("corpus").join(name), folder().join("seeds").join(name));
    fs::create_dir_all(&corpus)?;
    let mut command = fuzz("run");
    command.arg(name).args([&corpus, &seeds]).arg("--");
    command.arg(format!("-max_total_time={seconds}"));
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    // By default no input is longer than the longest seed or 4096 bytes.
    command.arg(format!("-max_len={MAX_LEN}"));
    // The targets write files; that is faster in memory.
    if Path::new(MEMORY).is_dir() {
        command.env("TMPDIR", MEMORY);
    }
    let output = command.output().context("starting the target")?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let number = |line: &str, before: &str| {
        let rest = line.split(before).nth(1)?.trim_start();
        rest.split(' ').next()?.parse::<u64>().ok()
    };
    let last = |before: &str| log.lines().rev().find_map(|line| number(line, before)).unwrap_or(0);
    let (executions, coverage) = (last("stat::number_of_executed_units:"), last("cov: "));
    let input = log.lines().find_map(|line| line.split("Test unit written to ").nth(1));
    let found =
        (!output.status.success()).then(|| input.unwrap_or("libFuzzer kept none").to_owned());
    // The panic, or the message of libFuzzer about a time-out or too much memory; the output of the
    // tools around it does not help.
    let begins = |line: &&str| line.contains("panicked at") || line.contains("ERROR: libFuzzer");
    let from = log.lines().skip_while(|line| !begins(line));
    let panic = from.take_while(|line| !line.starts_with("stack backtrace"));
    let log = panic.take(20).collect::<Vec<_>>().join("\n");
    Ok(Outcome { executions, coverage, log, found })
}
