//! The programs of the project as processes.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::{eventually, root};

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A program with its arguments and environment.
#[derive(Debug, Clone)]
pub struct Program {
    name: &'static str,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    logs: PathBuf,
}

impl Program {
    pub(crate) fn new(name: &'static str, logs: &Path) -> Self {
        let (arguments, environment) = (Vec::new(), BTreeMap::new());
        Self { name, arguments, environment, logs: logs.to_path_buf() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Removes the environment variables that the harness sets, and the given ones.
    #[must_use]
    pub fn bare(mut self, others: &[String]) -> Self {
        self.environment.retain(|name, _| !name.contains("__") && !others.contains(name));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(programs().join(self.name));
        // The program must not inherit settings from the environment.
        command.args(&self.arguments).env_clear().envs(&self.environment);
        command.current_dir(root()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a command until it ends.
    ///
    /// # Panics
    ///
    /// When the command does not start or does not end in time.
    pub async fn output(&self) -> Output {
        let limit = Duration::from_mins(5);
        timeout(limit, self.command().output())
            .await
            .expect("the program ends in time")
            .expect("the program starts")
    }

    /// Runs a command that must succeed. Returns its standard output.
    ///
    /// # Panics
    ///
    /// When the command fails.
    pub async fn succeed(&self) -> String {
        let output = self.output().await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{self:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with an exit code. Returns its output.
    ///
    /// # Panics
    ///
    /// When the command ends differently.
    pub async fn fail(&self, code: i32) -> String {
        let output = self.output().await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{self:?}: {text}");
        text
    }

    /// Runs a command that may fail. Returns whether it succeeded, and its output.
    pub async fn try_run(&self) -> (bool, String) {
        let output = self.output().await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        (output.status.success(), text)
    }

    /// Starts a daemon.
    ///
    /// # Panics
    ///
    /// When the daemon does not start.
    pub fn start(&self) -> Daemon {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = self.name.replace('/', "-");
        let log = self.logs.join(format!("{number:03}-{name}.log"));
        let output = File::create(&log).expect("the log file opens");
        let mut command = self.command();
        if self.arguments.is_empty() {
            command.arg("run");
        }
        command.stdout(output.try_clone().expect("the log file opens")).stderr(output);
        Daemon { child: command.spawn().expect("the daemon starts"), log, program: self.clone() }
    }

    /// Starts a daemon and waits until it is ready.
    pub async fn start_ready(&self) -> Daemon {
        let daemon = self.start();
        daemon.ready().await;
        daemon
    }
}

/// A running daemon. Dropping it kills the process.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    program: Program,
}

impl Daemon {
    /// Waits until the daemon reports that it is ready.
    pub async fn ready(&self) {
        eventually("the daemon is ready", async || {
            (self.get("/readyz").await?.0 == 200).then_some(())
        })
        .await;
    }

    /// The status and the body of a page, if the daemon answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("started"))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let url = format!("http://{}{path}", line["http"].as_str()?);
        let call = tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_secs(5)))
                .build()
                .into();
            let mut response = agent.get(url).call().ok()?;
            Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
        });
        call.await.ok()?
    }

    /// The value of a metric, given as `name{labels}`. A missing metric is 0.
    ///
    /// # Panics
    ///
    /// When the daemon does not answer.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").await.expect("the daemon answers");
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().expect("the metric is a number"))
    }

    /// The log of the daemon so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Panics
    ///
    /// When the daemon has ended already.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the daemon is killed");
    }

    /// Starts the daemon again after it has ended.
    pub fn restart(&mut self) {
        *self = self.program.start();
    }

    /// Sends SIGSTOP or SIGCONT.
    ///
    /// # Panics
    ///
    /// When the daemon has ended.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the signal is sent");
    }

    /// Sends SIGTERM. Returns the exit status and the time until the end.
    ///
    /// # Panics
    ///
    /// When the daemon does not end in time.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        self.signal(Signal::TERM);
        (self.ended().await, asked.elapsed())
    }

    /// Waits until the daemon ends without a signal.
    ///
    /// # Panics
    ///
    /// When the daemon does not end in time.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(Duration::from_mins(2), self.child.wait())
            .await
            .expect("the daemon ends in time")
            .expect("the exit status is read")
    }

    /// The process id of the daemon, while it runs.
    ///
    /// # Panics
    ///
    /// When the state of the process cannot be read.
    pub fn running(&mut self) -> Option<u32> {
        let ended = self.child.try_wait().expect("the process state is read");
        ended.is_none().then(|| self.child.id()).flatten()
    }

    fn pid(&self) -> Pid {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        id.and_then(Pid::from_raw).expect("the daemon runs")
    }

    /// Prints the last lines of all logs after a failed test.
    #[expect(clippy::print_stderr, reason = "a failed test prints its logs")]
    pub(crate) fn print_logs(folder: &Path) {
        let mut logs: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
        logs.sort_by_key(fs::DirEntry::file_name);
        for log in logs {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            eprintln!("--- {}", log.file_name().display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The folder of the programs. Builds them first, unless `cargo xtask test` did.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(folder) = env::var_os("DAEMONS") {
            return folder.into();
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = std::process::Command::new(cargo)
            .args(["build", "--bins", "--examples"])
            .args(["-p", "outbox-relay", "-p", "projector", "-p", "workload"])
            .args(["--features", "projector/failpoints"])
            .current_dir(root())
            .status();
        assert!(built.is_ok_and(|status| status.success()), "the daemons build");
        let test = env::current_exe().expect("the path of the test");
        test.ancestors().nth(2).expect("the folder target/debug").to_path_buf()
    })
}
