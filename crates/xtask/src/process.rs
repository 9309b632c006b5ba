//! Processes that this program has started.

use std::fs;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process. Its start time distinguishes it from a later process with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    pid: i32,
    /// Clock ticks since the machine started.
    started: u64,
}

impl Process {
    /// The process with a number.
    pub(crate) fn of(name: &str, pid: i32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("{name} has already ended"))?;
        Ok(Self { name: name.to_owned(), pid, started })
    }

    /// Name and number.
    pub(crate) fn text(&self) -> String {
        format!("{}={}", self.name, self.pid)
    }

    pub(crate) fn is_running(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Ends the process with SIGTERM, or with SIGKILL if that takes longer than `patience`.
    pub(crate) fn end(&self, patience: Duration) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        for (signal, patience) in [(Signal::TERM, patience), (Signal::KILL, Duration::from_secs(5))]
        {
            if !self.is_running() || kill_process(pid, signal).is_err() {
                return;
            }
            let asked = Instant::now();
            while self.is_running() && asked.elapsed() < patience {
                sleep(Duration::from_millis(20));
            }
        }
    }
}

/// From `/proc`; a zombie counts as ended.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain spaces and parentheses; the fields after it do not.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // The start time is the 22nd field, and the state the third.
    let started = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(started)
}

/// A child that is ended when this is dropped.
pub(crate) struct Owned {
    child: Child,
    process: Process,
}

impl Owned {
    /// Starts a child in a process group of its own, so that Ctrl-C reaches only this program.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut child =
            command.process_group(0).spawn().with_context(|| format!("starting {name}"))?;
        let pid = i32::try_from(child.id()).context("a process number")?;
        match Process::of(name, pid) {
            Ok(process) => Ok(Self { child, process }),
            Err(error) => {
                child.wait()?;
                Err(error)
            }
        }
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The exit status, if the child has ended.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.process.end(Duration::from_secs(12));
        // So that no zombie stays.
        drop(self.child.wait());
    }
}
