//! Private throwaway servers on loopback.
//!
//! Servers for tests trade durability for speed: a killed server loses nothing, a lost machine may lose
//! data. More important, their speed does not depend on the disk: where a flush takes a second, RabbitMQ
//! would need a minute to declare the queues of a few tests. Servers for benchmarks keep their promises.

mod disk;
mod mysql;
mod postgres;
mod rabbitmq;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(super) use self::disk::remove_data;
use super::tree::Tree;
use super::versions::{NEWEST, OLDEST, Versions};
use super::{Origin, Servers, script};
use crate::process::Process;

/// User, password and database of all three.
const NAME: &str = "dev";
/// Below the range that clients get their ports from: a restarting server must find its port free.
const LAST_PORT: u16 = 32_000;
/// Makes every flush to disk do nothing.
const NO_FLUSH: &str = "usr/lib/x86_64-linux-gnu/libeatmydata.so";
/// Each has a folder of its own.
const SERVERS: [&str; 3] = ["postgres", "mysql", "rabbitmq"];
const START_LIMIT: Duration = Duration::from_mins(2);

/// The use that servers are started for. Each has its own data and its own ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Development and tests: the servers do not flush to disk.
    Tests,
    /// Tests on the oldest supported versions: the servers do not flush to disk.
    Oldest,
    /// Benchmarks: with the servers' own defaults.
    Bench,
    /// Servers to be broken: with their own defaults, each on a small file system of its own where that
    /// is possible, and with scripts that start them again.
    Chaos,
}

impl Purpose {
    /// Ranges do not overlap: a port that seems free may belong to a server that is just being broken.
    fn first_port(self) -> u16 {
        match self {
            Self::Tests => 20_000,
            Self::Oldest => 22_000,
            Self::Bench => 24_000,
            Self::Chaos => 28_000,
        }
    }

    fn data(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::Tests => "data",
            Self::Oldest => "oldest",
            Self::Bench => "durable",
            Self::Chaos => "chaos",
        })
    }

    fn is_durable(self) -> bool {
        match self {
            Self::Tests | Self::Oldest => false,
            Self::Bench | Self::Chaos => true,
        }
    }

    fn versions(self) -> Versions {
        match self {
            Self::Oldest => OLDEST,
            Self::Tests | Self::Bench | Self::Chaos => NEWEST,
        }
    }
}

/// Starts all three with new data.
pub(super) fn up(folder: &Path, purpose: Purpose) -> Result<Servers> {
    let trees = Trees::at(folder, purpose.versions())?;
    let data = purpose.data(folder);
    if let Ok(previous) = data.canonicalize() {
        // One of the previous servers may have died, or their start was interrupted.
        end_strays(&previous)?;
    }
    remove_data(folder, purpose)?;
    disk::create_data(&data, purpose)?;
    let data = data.canonicalize()?;
    let private = Private { trees, purpose, data: &data, ports: Ports::free(purpose)? };
    let mut processes = Vec::new();
    let started = private.start(&mut processes).and_then(|()| private.tools());
    let tools = match started {
        Ok(tools) => tools,
        Err(error) => {
            end_strays(&data)?;
            return Err(error.context(format!("see the logs in {}", data.display())));
        }
    };
    let Ports { postgres, amqp, management, mysql, .. } = private.ports;
    let host = format!("{NAME}:{NAME}@127.0.0.1");
    let urls = [
        ("EVENT_STORE_URL", format!("postgres://{host}:{postgres}/{NAME}")),
        ("AMQP_URL", format!("amqp://{host}:{amqp}/%2f")),
        ("READ_MODEL_URL", format!("mysql://{host}:{mysql}/{NAME}")),
        ("RABBITMQ_MANAGEMENT_URL", format!("http://{host}:{management}")),
    ];
    Ok(Servers::new(Origin::Private, urls, processes)
        .with_tools(tools)
        .with_versions(private.versions()?))
}

/// Ends every program of the tree, recorded or not: each has the data folder as its home.
pub(super) fn end_strays(data: &Path) -> Result<()> {
    let home = format!("HOME={}", data.display());
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let variables = fs::read(path.join("environ")).unwrap_or_default();
        let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(pid) = pid
            && variables.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
            && let Ok(process) = Process::of("stray", pid)
        {
            process.end(Duration::from_secs(10));
        }
    }
    Ok(())
}

/// Ends servers, even if they were started again meanwhile, and removes what they have stored.
pub(super) fn end(folder: &Path, purpose: Purpose) -> Result<()> {
    if let Ok(data) = purpose.data(folder).canonicalize() {
        end_strays(&data)?;
    }
    remove_data(folder, purpose)
}

struct Trees {
    postgres: Tree,
    mysql: Tree,
    rabbitmq: Tree,
    pgbouncer: Tree,
}

impl Trees {
    fn at(folder: &Path, versions: Versions) -> Result<Self> {
        Ok(Self {
            postgres: Tree::at(folder, versions.postgres)?,
            mysql: Tree::at(folder, versions.mysql)?,
            rabbitmq: Tree::at(folder, versions.rabbitmq)?,
            pgbouncer: Tree::at(folder, versions.pgbouncer)?,
        })
    }
}

struct Ports {
    postgres: u16,
    amqp: u16,
    management: u16,
    distribution: u16,
    epmd: u16,
    mysql: u16,
}

impl Ports {
    fn free(purpose: Purpose) -> Result<Self> {
        let mut candidates = purpose.first_port()..LAST_PORT;
        let mut next = || {
            candidates
                .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
                .context("no free port")
        };
        Ok(Self {
            postgres: next()?,
            amqp: next()?,
            management: next()?,
            distribution: next()?,
            epmd: next()?,
            mysql: next()?,
        })
    }
}

struct Private<'d> {
    trees: Trees,
    purpose: Purpose,
    data: &'d Path,
    ports: Ports,
}

impl Private<'_> {
    fn start(&self, processes: &mut Vec<Process>) -> Result<()> {
        // The slowest first, and each waits only for itself.
        self.spawn("rabbitmq", &mut self.rabbitmq()?)?;
        self.initialise_mysql()?;
        self.spawn("mysql", &mut self.mysqld()?)?;
        self.initialise_postgres()?;
        self.spawn("postgres", &mut self.postgres()?)?;
        if self.purpose == Purpose::Chaos {
            self.start_script("rabbitmq", &self.rabbitmq()?)?;
            self.start_script("mysql", &self.mysqld()?)?;
            self.start_script("postgres", &self.postgres()?)?;
        }
        processes.push(self.await_postgres()?);
        processes.push(self.await_mysql()?);
        processes.push(self.await_rabbitmq()?);
        processes.push(self.epmd()?);
        Ok(())
    }

    /// A program of a tree. It sees files in the data folder only.
    fn command(&self, tree: &Tree, variables: &[(&str, String)], program: &str) -> Result<Command> {
        let mut variables = variables.to_vec();
        if !self.purpose.is_durable() {
            variables.push(("LD_PRELOAD", tree.path(NO_FLUSH).display().to_string()));
        }
        tree.command(self.data, &variables, program)
    }

    /// Environment variables and the scripts that they name.
    fn tools(&self) -> Result<[(&'static str, String); 4]> {
        let pgbouncer = self.command(&self.trees.pgbouncer, &[], "pgbouncer")?;
        let program = self.command(&self.trees.postgres, &[], "env")?;
        let tool = |name: &str, command| script(&self.data.join("tools").join(name), &command);
        Ok([
            ("RABBITMQCTL", tool("rabbitmqctl", self.rabbitmq_command("rabbitmqctl")?)?),
            ("PGBOUNCER", tool("pgbouncer", pgbouncer)?),
            // Its arguments name a program of PostgreSQL.
            ("POSTGRES_PROGRAM", tool("postgres-program", program)?),
            ("SERVER_DATA", self.data.display().to_string()),
        ])
    }

    /// A script that starts a server again with the same options.
    fn start_script(&self, server: &str, command: &Command) -> Result<()> {
        script(&self.data.join("tools").join(format!("start-{server}")), command).map(drop)
    }

    /// The versions of the servers, for people to read.
    fn versions(&self) -> Result<String> {
        let version = |mut command: Command| -> Result<String> {
            let text = String::from_utf8(command.arg("--version").output()?.stdout)?;
            // `postgres (PostgreSQL) 15.18 (Debian …)`, `/usr/sbin/mysqld  Ver 9.7.4-2 for Linux …`
            let number = text.split_whitespace().find(|word| word.starts_with(char::is_numeric));
            Ok(number.unwrap_or("?").to_owned())
        };
        Ok(format!(
            "PostgreSQL {}, RabbitMQ {}, MySQL {}",
            version(self.postgres_command("postgres")?)?,
            self.rabbitmq_version()?,
            version(self.mysql_command("mysqld")?)?,
        ))
    }

    fn run(&self, log: &str, command: &mut Command) -> Result<()> {
        let output = self.log(log)?;
        let status = command.stdout(output.try_clone()?).stderr(output).status()?;
        if status.success() { Ok(()) } else { bail!("preparing {log} failed") }
    }

    /// Starts a server that outlives this program.
    fn spawn(&self, name: &str, command: &mut Command) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let output = self.log(name)?;
        command.process_group(0).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(())
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.data.join(format!("{name}.log"));
        Ok(File::options().create(true).append(true).open(path)?)
    }

    /// The process whose number a server writes to a file.
    fn process(&self, name: &str, file: &str) -> Result<Process> {
        let file = self.data.join(file);
        let read = || -> Option<i32> {
            fs::read_to_string(&file).ok()?.lines().next()?.trim().parse().ok()
        };
        wait(name, || read().is_some())?;
        Process::of(name, read().context("a process number")?)
    }

    fn path(&self, inside: &str) -> String {
        self.data.join(inside).display().to_string()
    }
}

fn wait(name: &str, ready: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !ready() {
        if started.elapsed() > START_LIMIT {
            bail!("{name} did not start within {} s", START_LIMIT.as_secs());
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Whether a server answers on a port after a client's first bytes.
fn greets(port: u16, first: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut answer = [0; 1];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(first).is_ok()
        && stream.read_exact(&mut answer).is_ok()
}
