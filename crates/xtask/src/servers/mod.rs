//! PostgreSQL, RabbitMQ and MySQL for development and tests.

mod compose;
mod private;
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, process, thread};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use self::private::Purpose;
use crate::process::Process;
use crate::workspace::target;

/// The environment variables that name the servers.
const NEEDED: [&str; 3] = ["EVENT_STORE_URL", "AMQP_URL", "READ_MODEL_URL"];
const MANAGEMENT: &str = "RABBITMQ_MANAGEMENT_URL";

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Command {
    /// Start the servers, or find those that run.
    Up,
    /// Stop the servers that `up` started, and remove their data.
    Down,
    /// Say what runs.
    Status,
    /// Print URLs and tools as shell exports: eval "$(cargo xtask servers env)"
    Env,
}

impl Command {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Up => {
                let (servers, _) = up()?;
                servers.print_status();
            }
            Self::Down => down()?,
            Self::Status => match running()? {
                Some(servers) => servers.print_status(),
                None => println!("no servers; `cargo xtask servers up` starts them"),
            },
            Self::Env => {
                let servers = running()?.context("no servers: run `cargo xtask servers up`")?;
                for (name, value) in servers.variables() {
                    println!("export {name}='{value}'");
                }
            }
        }
        Ok(())
    }
}

/// Servers that can be used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Servers {
    origin: Origin,
    /// Environment variables and their values.
    pub(crate) urls: BTreeMap<String, String>,
    /// Programs that only some tests need: environment variables and paths.
    #[serde(default)]
    tools: BTreeMap<String, String>,
    /// Empty unless they are private.
    processes: Vec<Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Origin {
    Environment,
    Compose,
    Private,
}

/// Servers for the time of one command: stopped at its end if it started them.
pub(crate) struct Borrowed {
    pub(crate) servers: Servers,
    ours: bool,
}

impl Borrowed {
    pub(crate) fn up() -> Result<Self> {
        let (servers, ours) = up()?;
        Ok(Self { servers, ours })
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = down()
        {
            eprintln!("the servers could not be stopped: {error:#}");
        }
    }
}

/// Servers that flush to disk, for benchmarks: those that the environment names, or new ones that end
/// with this.
pub(crate) struct Durable {
    pub(crate) servers: Servers,
}

impl Durable {
    pub(crate) fn up() -> Result<Self> {
        if let Some(servers) = running()?.filter(|servers| servers.origin == Origin::Environment) {
            return Ok(Self { servers });
        }
        let _turn = turn()?;
        Ok(Self { servers: private::up(&folder(), Purpose::Bench)? })
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if self.servers.origin == Origin::Private {
            self.servers.end();
            if let Err(error) = private::remove_data(&folder(), Purpose::Bench) {
                eprintln!("the servers' data could not be removed: {error:#}");
            }
        }
    }
}

/// Private servers that are there to be broken; they end with this.
pub(crate) struct Breakable {
    pub(crate) servers: Servers,
    /// One at a time: the next would end these.
    _alone: File,
}

impl Breakable {
    pub(crate) fn up() -> Result<Self> {
        fs::create_dir_all(folder())?;
        let alone = File::create(folder().join("chaos.lock"))?;
        alone.lock()?;
        let _turn = turn()?;
        Ok(Self { servers: private::up(&folder(), Purpose::Chaos)?, _alone: alone })
    }
}

impl Drop for Breakable {
    fn drop(&mut self) {
        if let Err(error) = private::end(&folder(), Purpose::Chaos) {
            eprintln!("the servers could not be removed: {error:#}");
        }
    }
}

/// Finds or starts servers; says also whether they were started.
fn up() -> Result<(Servers, bool)> {
    let _turn = turn()?;
    if let Some(servers) = running()? {
        return Ok((servers, false));
    }
    let servers = match compose::up(&folder()) {
        Ok(servers) => servers,
        Err(why) => {
            eprintln!("docker compose is not used: {why:#}");
            eprintln!("starting private servers in {}", folder().display());
            private::up(&folder(), Purpose::Tests)?
        }
    };
    fs::write(record(), serde_json::to_string_pretty(&servers)?)?;
    Ok((servers, true))
}

fn down() -> Result<()> {
    let _turn = turn()?;
    let Some(servers) = recorded() else {
        println!("no servers of ours");
        return Ok(());
    };
    match servers.origin {
        Origin::Environment => {}
        Origin::Compose => compose::down()?,
        Origin::Private => {
            servers.end();
            private::remove_data(&folder(), Purpose::Tests)?;
        }
    }
    fs::remove_file(record())?;
    Ok(())
}

/// Servers named by the environment, or those that we started before, if they still run.
fn running() -> Result<Option<Servers>> {
    let urls: BTreeMap<String, String> = NEEDED
        .into_iter()
        .chain([MANAGEMENT])
        .filter_map(|name| Some((name.to_owned(), env::var(name).ok()?)))
        .collect();
    let named = NEEDED.iter().filter(|name| urls.contains_key(**name)).count();
    if named == NEEDED.len() {
        let (tools, processes) = (BTreeMap::new(), Vec::new());
        let servers = Servers { origin: Origin::Environment, urls, tools, processes };
        for name in NEEDED {
            let url = &servers.urls[name];
            let address = address(url).with_context(|| format!("{name} is no URL with a host"))?;
            if !is_open(&address) {
                bail!("{name} leads to {address}, where nothing listens");
            }
        }
        return Ok(Some(servers));
    }
    if named > 0 {
        bail!("set all of {}, or none", NEEDED.join(", "));
    }
    let alive = |servers: &Servers| {
        servers.processes.iter().all(Process::is_running)
            && servers.urls.values().filter_map(|url| address(url)).all(|address| is_open(&address))
    };
    Ok(recorded().filter(alive))
}

fn recorded() -> Option<Servers> {
    serde_json::from_str(&fs::read_to_string(record()).ok()?).ok()
}

impl Servers {
    fn new(origin: Origin, urls: [(&str, String); 4], processes: Vec<Process>) -> Self {
        let urls = urls.into_iter().map(|(name, url)| (name.to_owned(), url)).collect();
        Self { origin, urls, tools: BTreeMap::new(), processes }
    }

    fn with_tools<const N: usize>(mut self, tools: [(&str, String); N]) -> Self {
        self.tools = tools.into_iter().map(|(name, path)| (name.to_owned(), path)).collect();
        self
    }

    fn end(&self) {
        thread::scope(|scope| {
            for process in &self.processes {
                scope.spawn(|| process.end(Duration::from_mins(1)));
            }
        });
    }

    /// Their names and process numbers, if they were started by us: `postgres=1,mysql=2`.
    pub(crate) fn pids(&self) -> String {
        let pids: Vec<String> = self.processes.iter().map(Process::text).collect();
        pids.join(",")
    }

    /// Whether they were started for us alone.
    pub(crate) fn are_ours(&self) -> bool {
        self.origin != Origin::Environment
    }

    /// What tests find in their environment.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&String, &String)> {
        self.urls.iter().chain(&self.tools)
    }

    fn print_status(&self) {
        let origin = match self.origin {
            Origin::Environment => "from the environment",
            Origin::Compose => "docker compose",
            Origin::Private => "private, in target/servers",
        };
        println!("servers ({origin}):");
        for (name, url) in &self.urls {
            let address = address(url).unwrap_or_default();
            println!("  {name:<24} {address} {}", if is_open(&address) { "up" } else { "DOWN" });
        }
    }
}

/// Two commands at once must not both start servers.
fn turn() -> Result<File> {
    fs::create_dir_all(folder())?;
    let file = File::create(folder().join("lock"))?;
    file.lock()?;
    Ok(file)
}

fn folder() -> PathBuf {
    target().join("servers")
}

fn record() -> PathBuf {
    folder().join("servers.json")
}

/// Host and port of a URL.
fn address(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    let port = match scheme {
        "postgres" | "postgresql" => 5432,
        "mysql" => 3306,
        "amqp" => 5672,
        "amqps" => 5671,
        _ => 80,
    };
    Some(if host.contains(':') { host.to_owned() } else { format!("{host}:{port}") })
}

/// Writes a script that runs a command with more arguments, and gives its path.
fn script(path: &Path, command: &process::Command) -> Result<String> {
    // A command prints itself as a shell would take it.
    fs::write(path, format!("#!/bin/sh\n{command:?} \"$@\"\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn is_open(address: &str) -> bool {
    let limit = Duration::from_secs(2);
    let addresses = address.to_socket_addrs().into_iter().flatten();
    addresses.into_iter().any(|address| TcpStream::connect_timeout(&address, limit).is_ok())
}
