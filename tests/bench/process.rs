//! The cost of processes, from `/proc`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::time::{Duration, Instant};

use harness::Daemon;
use tokio::time::sleep;

/// The CPU time of the servers.
pub(crate) struct Cpu {
    begun: BTreeMap<String, f64>,
}

impl Cpu {
    /// Starts to count. `SERVER_PIDS` names the servers: `postgres=1,mysql=2`.
    pub(crate) fn start() -> Self {
        Self { begun: servers() }
    }

    /// The CPU seconds of each server since the start.
    pub(crate) fn spent(&self) -> BTreeMap<String, f64> {
        servers()
            .into_iter()
            .map(|(name, now)| {
                let begun = self.begun.get(&name).copied().unwrap_or_default();
                (name, now - begun)
            })
            .collect()
    }
}

fn servers() -> BTreeMap<String, f64> {
    let pids = env::var("SERVER_PIDS").unwrap_or_default();
    let pid = |pair: &str| {
        let (name, pid) = pair.split_once('=')?;
        Some((name.to_owned(), pid.parse().ok()?))
    };
    pids.split(',').filter_map(pid).map(|(name, pid)| (name, tree_seconds(pid))).collect()
}

/// The CPU seconds of a process and all its children, including ended ones.
fn tree_seconds(pid: u32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    seconds(pid, 4) + children.map(tree_seconds).sum::<f64>()
}

/// The sum of the first `parts` of: user, system, user of ended children, system of ended children.
fn seconds(pid: u32, parts: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return 0.0 };
    let ticks = rest.split(' ').skip(11).take(parts).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// The cost of a process when it was last read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// CPU time, in seconds.
    pub(crate) seconds: f64,
    /// Peak memory, in MiB.
    pub(crate) mebibytes: f64,
}

/// The cost so far of a process.
pub(crate) fn cost(pid: u32) -> Cost {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: f64 =
        peak.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or_default();
    Cost { seconds: seconds(pid, 2), mebibytes: kibibytes / 1024.0 }
}

/// Waits until a command succeeds; returns its duration and cost.
pub(crate) async fn run(mut command: Daemon) -> (Duration, Cost) {
    let begun = Instant::now();
    let mut last = Cost::default();
    while let Some(pid) = command.running() {
        let now = cost(pid);
        if now.mebibytes > 0.0 {
            last = now;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    let status = command.ended().await;
    assert!(status.success(), "{}", command.log());
    (took, last)
}
