//! The demo: events flow through the whole system.

mod view;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::view::{Counts, View};
use crate::process::Owned;
use crate::servers::Borrowed;
use crate::workspace::{build, root, succeed, target};

const PROJECTIONS: [&str; 3] = ["order_summary", "customer_value", "daily_revenue"];
/// How long the daemons may take to become ready, and to catch up at the end.
const READY_LIMIT: Duration = Duration::from_mins(3);
const CATCH_UP_LIMIT: Duration = Duration::from_mins(3);
const FRAME: Duration = Duration::from_millis(500);

/// Watch events flow: start servers, both daemons and a sample shop, and see the read models fill.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask demo                           until Ctrl-C
  cargo xtask demo --seconds 30              30 seconds; fails unless every event was applied
  cargo xtask demo --release --rate 2000     faster")]
pub(crate) struct Demo {
    /// Generate events for this many seconds, then fail unless every event was applied. Without it,
    /// Ctrl-C ends the demo.
    #[arg(long, value_parser = clap::value_parser!(u64).range(5..))]
    seconds: Option<u64>,
    /// Events per second.
    #[arg(long, default_value_t = 300)]
    rate: u64,
    /// Build with optimisation, for speed.
    #[arg(long)]
    release: bool,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;

        println!("building the daemons and starting servers");
        // Both take minutes the first time, and neither needs the other.
        let (programs, borrowed) = thread::scope(|scope| {
            let servers = scope.spawn(Borrowed::up);
            let programs = build(self.release);
            let servers = servers.join().unwrap_or_else(|_| bail!("starting the servers panicked"));
            (programs, servers)
        });
        let (programs, borrowed) = (programs?, borrowed?);
        let stage = Stage::new(programs, borrowed.servers.urls.clone())?;
        stage.migrate()?;
        let relay = stage.daemon("outbox-relay", "OUTBOX_RELAY__RELAY__HTTP_LISTEN")?;
        let projector = stage.daemon("projector", "PROJECTOR__PROJECTOR__HTTP_LISTEN")?;
        let mut daemons = [relay, projector];
        wait_until_ready(&mut daemons, &stop)?;

        let before = Counts::read(&daemons)?;
        let mut workload = stage.workload(self.rate, self.seconds)?;
        let mut view = View::new(before);
        while !stop.load(Ordering::Relaxed) && workload.process.ended().is_none() {
            sleep(FRAME);
            view.show(workload.appended(), &Counts::read(&daemons)?);
            for daemon in &mut daemons {
                daemon.require_running()?;
            }
        }
        let caught_up = self.wait_until_caught_up(workload, &mut view, &daemons)?;
        view.summary(&Counts::read(&daemons)?);
        for projection in PROJECTIONS {
            succeed(stage.command("projector").args(["show", projection, "--limit", "5"]))?;
        }
        println!("relay:     http://{}/metrics and /readyz", daemons[0].listen);
        println!("projector: http://{}/metrics and /readyz", daemons[1].listen);
        if self.seconds.is_none() && !stop.load(Ordering::Relaxed) {
            bail!("the workload ended unexpectedly: see {}", stage.logs.display());
        }
        if caught_up {
            Ok(())
        } else {
            bail!("some events were not applied: see {}", stage.logs.display())
        }
    }

    /// Ends the workload and waits until every event is applied. `false` if that takes too long.
    fn wait_until_caught_up(
        &self,
        workload: Workload,
        view: &mut View,
        daemons: &[Daemon],
    ) -> Result<bool> {
        let appended = workload.end(self.seconds.is_some())?;
        let ended = Instant::now();
        loop {
            let caught_up = view.show(appended.load(Ordering::Relaxed), &Counts::read(daemons)?);
            if caught_up || ended.elapsed() > CATCH_UP_LIMIT {
                return Ok(caught_up);
            }
            sleep(FRAME);
        }
    }
}

/// Everything that the programs of the demo share.
struct Stage {
    programs: PathBuf,
    urls: BTreeMap<String, String>,
    logs: PathBuf,
}

impl Stage {
    fn new(programs: PathBuf, urls: BTreeMap<String, String>) -> Result<Self> {
        let logs = target().join("demo");
        fs::create_dir_all(&logs)?;
        Ok(Self { programs, urls, logs })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(root()).envs(&self.urls);
        command
    }

    fn migrate(&self) -> Result<()> {
        for program in ["outbox-relay", "projector"] {
            succeed(self.command(program).arg("migrate"))?;
        }
        Ok(())
    }

    fn daemon(&self, program: &'static str, variable: &str) -> Result<Daemon> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let log = self.logs.join(format!("{program}.log"));
        let output = File::create(&log)?;
        let mut command = self.command(program);
        command.arg("run").env(variable, &listen).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let process = Owned::start(program, &mut command)?;
        Ok(Daemon { process, listen, log })
    }

    fn workload(&self, rate: u64, seconds: Option<u64>) -> Result<Workload> {
        // Practically endless.
        let events = seconds.map_or(1_000_000_000, |seconds| rate * seconds);
        let mut command = self.command("workload");
        command
            .args(["generate", "--json", "--writers", "2"])
            .args(["--rate", &rate.to_string(), "--events", &events.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.logs.join("workload.log"))?);
        let mut process = Owned::start("workload", &mut command)?;
        let lines = process.child().stdout.take().context("the workload's output")?;
        let appended = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&appended);
        let reader = thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let count = serde_json::from_str::<serde_json::Value>(&line);
                if let Some(count) = count.ok().and_then(|line| line["appended"].as_u64()) {
                    counter.store(count, Ordering::Relaxed);
                }
            }
        });
        Ok(Workload { process, appended, reader })
    }
}

/// The program that appends events, and their number so far.
struct Workload {
    process: Owned,
    appended: Arc<AtomicU64>,
    reader: thread::JoinHandle<()>,
}

impl Workload {
    fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// Ends the program and returns the final number of events. With `must_succeed`, an exit status other
    /// than success is an error.
    fn end(mut self, must_succeed: bool) -> Result<Arc<AtomicU64>> {
        let status = self.process.ended();
        drop(self.process);
        drop(self.reader.join());
        match status {
            Some(status) if must_succeed && !status.success() => {
                bail!("the workload failed: see {}", target().join("demo/workload.log").display())
            }
            _ => Ok(self.appended),
        }
    }
}

/// A running daemon.
struct Daemon {
    process: Owned,
    listen: String,
    log: PathBuf,
}

impl Daemon {
    fn get(&self, path: &str) -> Result<String> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(5)))
            .build()
            .into();
        let mut response = agent.get(format!("http://{}{path}", self.listen)).call()?;
        Ok(response.body_mut().read_to_string()?)
    }

    fn require_running(&mut self) -> Result<()> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => bail!("a daemon ended ({status}): {}", last_line(&self.log)),
        }
    }
}

fn wait_until_ready(daemons: &mut [Daemon], stop: &AtomicBool) -> Result<()> {
    let started = Instant::now();
    for daemon in daemons {
        while daemon.get("/readyz").is_err() {
            daemon.require_running()?;
            if stop.load(Ordering::Relaxed) {
                bail!("stopped");
            }
            if started.elapsed() > READY_LIMIT {
                bail!("a daemon is not ready: {}", last_line(&daemon.log));
            }
            sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}
