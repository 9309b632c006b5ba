//! Stops, kills, freezes and starts servers, and fills their disks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use harness::Stack;
use rustix::fs::statvfs;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::account::lock;
use crate::databases;
use crate::faults::Server;

const STOP_LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT: Duration = Duration::from_mins(1);
const STARTS: usize = 5;
const FILLS: usize = 20;
/// The bytes that a full disk has left.
const LEFT: u64 = 8 << 10;
const DISK: &str = "6g";

/// The servers that `cargo xtask chaos` has started.
pub(crate) struct Servers {
    data: PathBuf,
    urls: [String; 3],
    /// The processes of restarted servers.
    children: Mutex<Vec<Child>>,
}

impl Servers {
    pub(crate) fn of(stack: &Stack) -> Self {
        let data = std::env::var_os("SERVER_DATA").expect("`cargo xtask chaos` sets SERVER_DATA");
        let urls = [&stack.postgres_url, &stack.amqp_url, &stack.mysql_url].map(String::clone);
        Self { data: data.into(), urls, children: Mutex::default() }
    }

    /// Shuts a server down cleanly.
    pub(crate) async fn stop(&self, server: Server) -> Result<(), String> {
        // SIGINT is PostgreSQL's fast shutdown; the other servers use SIGTERM.
        let signal = if server == Server::PostgreSql { Signal::INT } else { Signal::TERM };
        let pid = self.pid(server)?;
        kill_process(pid, signal).map_err(|error| error.to_string())?;
        if !gone(pid).await {
            self.kill(server).await?;
        }
        Ok(())
    }

    /// Kills all processes of a server.
    pub(crate) async fn kill(&self, server: Server) -> Result<(), String> {
        let pid = self.pid(server)?;
        for process in tree(pid) {
            kill_process(process, Signal::KILL).ok();
        }
        gone(pid).await;
        Ok(())
    }

    /// Freezes or thaws all processes of a server.
    pub(crate) fn signal(&self, server: Server, signal: Signal) -> Result<(), String> {
        let pid = self.pid(server)?;
        for process in tree(pid) {
            kill_process(process, signal).ok();
        }
        Ok(())
    }

    /// Starts a stopped server and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it does not answer after several attempts.
    pub(crate) async fn start(&self, server: Server) {
        let log = self.data.join(format!("{}.log", server.name()));
        for _ in 0..STARTS {
            let output = File::options().append(true).create(true).open(&log).expect("a log");
            let mut command =
                Command::new(self.data.join("tools").join(format!("start-{}", server.name())));
            command.process_group(0).stdin(Stdio::null());
            command.stdout(output.try_clone().expect("a log")).stderr(output);
            let child = command.spawn().expect("a server can be started");
            lock(&self.children).push(child);
            if timeout(START_LIMIT, self.answers(server)).await.is_ok() {
                return;
            }
            drop(self.kill(server).await);
        }
        panic!("{} does not start again: see {}", server.name(), log.display());
    }

    /// Restarts a server if it has ended or does not answer.
    pub(crate) async fn ensure(&self, server: Server) {
        let begun = Instant::now();
        while self.is_running(server) && begun.elapsed() < STOP_LIMIT {
            if timeout(databases::LIMIT, self.answers(server)).await.is_ok() {
                return;
            }
        }
        drop(self.kill(server).await);
        self.start(server).await;
    }

    /// Whether each server has its own file system, which only root can mount.
    pub(crate) fn can_be_filled(&self) -> bool {
        let id = |folder: &Path| statvfs(folder).ok().map(|found| found.f_fsid);
        Server::ALL.iter().all(|server| id(&self.data.join(server.name())) != id(&self.data))
    }

    /// Leaves a server almost no space on its disk.
    pub(crate) async fn fill(&self, server: Server) -> Result<(), String> {
        let disk = self.data.join(server.name());
        let mut filled = Ok(());
        for _ in 0..FILLS {
            let own = statvfs(&disk).map_err(|error| error.to_string())?;
            let used = (own.f_blocks - own.f_bfree) * own.f_frsize;
            // Refused if the server has used more meanwhile.
            filled = resize(&disk, &format!("{}k", (used + LEFT) >> 10)).await;
            if filled.is_ok() {
                break;
            }
        }
        filled
    }

    /// Whether a server has used all of its space.
    pub(crate) fn is_full(&self, server: Server) -> bool {
        statvfs(self.data.join(server.name())).is_ok_and(|own| own.f_bfree == 0)
    }

    /// Gives a server enough space again.
    pub(crate) async fn empty(&self, server: Server) -> Result<(), String> {
        resize(&self.data.join(server.name()), DISK).await
    }

    async fn answers(&self, server: Server) {
        match server {
            Server::PostgreSql => drop(databases::postgres(&self.urls[0]).await),
            Server::MySql => drop(databases::mysql(&self.urls[2]).await),
            Server::RabbitMq => loop {
                let properties = lapin::ConnectionProperties::default();
                let connect = lapin::Connection::connect(&self.urls[1], properties);
                if let Ok(Ok(_)) = timeout(databases::LIMIT, connect).await {
                    return;
                }
                sleep(Duration::from_millis(200)).await;
            },
        }
    }

    fn is_running(&self, server: Server) -> bool {
        self.pid(server).is_ok_and(is_alive)
    }

    /// Reads the process id from the file to which the server writes it.
    fn pid(&self, server: Server) -> Result<Pid, String> {
        let file = self.data.join(match server {
            Server::PostgreSql => "postgres/postmaster.pid",
            Server::RabbitMq => "rabbitmq/pid",
            Server::MySql => "mysql/pid",
        });
        let text = fs::read_to_string(&file).map_err(|_| "it is not running".to_owned())?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        pid.and_then(Pid::from_raw).ok_or_else(|| "it is still starting".to_owned())
    }
}

async fn resize(disk: &Path, size: &str) -> Result<(), String> {
    let mut mount = Command::new("mount");
    let status = mount.args(["-o", &format!("remount,size={size}")]).arg(disk).status().await;
    if status.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(format!("its file system cannot be resized to {size}"))
    }
}

async fn gone(pid: Pid) -> bool {
    let asked = Instant::now();
    while is_alive(pid) {
        if asked.elapsed() > STOP_LIMIT {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    true
}

/// A zombie counts as ended.
fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(pid).is_ok() && !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z')
}

/// A process and all its descendants.
fn tree(pid: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?));
    std::iter::once(pid).chain(below.flat_map(tree)).collect()
}
