//! Fuzzing, with a nightly compiler and cargo-fuzz.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::{nightly, root, succeed, target};

/// Feed messages, projections, parameters and configurations that nobody would write to the code that
/// reads them.
///
/// Begins with `fuzz/seeds` and what earlier runs found in `fuzz/corpus`. An input that breaks
/// something is kept in `fuzz/artifacts`: mend the code, and move the input to the seeds, which are
/// tests too.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// How long each target is fuzzed.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The targets; otherwise all of them: the files in `fuzz/fuzz_targets`.
    targets: Vec<String>,
}

/// A file system in memory, where there is one.
const MEMORY: &str = "/dev/shm";

/// The longest input: as long as a large payload.
const MAX_LEN: usize = 256 << 10;

/// What a run of a target came to.
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
        // Without its own lock file, so that what is fuzzed is what is shipped.
        fs::copy(root().join("Cargo.lock"), folder().join("Cargo.lock"))?;
        succeed(&mut fuzz("build"))?;
        let mut broken = Vec::new();
        for target in targets {
            let outcome = run(&target, self.seconds)?;
            let Outcome { executions, coverage, log, found } = outcome;
            let verdict = found.as_ref().map_or("nothing found", |_| "FOUND");
            println!("{target:<12} {executions:>10} executions  {coverage:>6} edges  {verdict}");
            if let Some(input) = found {
                println!("{log}\nthe input: {input}");
                broken.push(target);
            }
        }
        if !broken.is_empty() {
            bail!("found something in {}", broken.join(", "));
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
            bail!("there is no target {unknown}; there are {}", known.join(", "));
        }
        Ok(if self.targets.is_empty() { known } else { self.targets.iter().cloned().collect() })
    }
}

fn folder() -> PathBuf {
    root().join("fuzz")
}

/// Nothing is installed unasked.
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
        bail!("something is missing; install it with\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn fuzz(command: &str) -> Command {
    let mut fuzz = nightly();
    fuzz.args(["fuzz", command, "--fuzz-dir"]).arg(folder());
    fuzz.arg("--target-dir").arg(target().join("fuzz"));
    // Sanitizers look for mistakes of unsafe code, of which there is none here; and cost half of the
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
    // Otherwise no input is longer than the longest seed, or 4096 bytes.
    command.arg(format!("-max_len={MAX_LEN}"));
    // The targets write files, which costs less in memory.
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
    let found = (!output.status.success()).then(|| input.unwrap_or("none was kept").to_owned());
    // The panic, or what libFuzzer says of a time-out or of too much memory; what the tools say before
    // and after it helps nobody.
    let begins = |line: &&str| line.contains("panicked at") || line.contains("ERROR: libFuzzer");
    let from = log.lines().skip_while(|line| !begins(line));
    let panic = from.take_while(|line| !line.starts_with("stack backtrace"));
    let log = panic.take(20).collect::<Vec<_>>().join("\n");
    Ok(Outcome { executions, coverage, log, found })
}
