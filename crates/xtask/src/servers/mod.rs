//! PostgreSQL, RabbitMQ and MySQL for development and tests.

mod compose;
mod guards;
mod private;
mod tree;
mod unpack;
mod versions;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, process, thread};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use self::compose::Compose;
pub(crate) use self::guards::{Borrowed, Breakable, Durable, Oldest};
use self::private::Purpose;
use crate::process::Process;
use crate::workspace::target;

/// The environment variables that name the servers.
const NEEDED: [&str; 3] = ["EVENT_STORE_URL", "AMQP_URL", "READ_MODEL_URL"];
const MANAGEMENT: &str = "RABBITMQ_MANAGEMENT_URL";

/// Start and stop PostgreSQL, RabbitMQ and MySQL for development.
///
/// Uses the first that is available: the servers that `EVENT_STORE_URL`, `AMQP_URL` and
/// `READ_MODEL_URL` name; docker compose; private servers unpacked from Debian's packages into
/// target/servers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask servers up                      servers that stay up between commands
  eval \"$(cargo xtask servers env)\"           their URLs in your shell
  cargo xtask servers down                    stops them and removes their data")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Start the servers unless they run, and print their addresses.
    Up,
    /// Stop the servers that `up` started, and remove their data.
    Down,
    /// Print the addresses of the servers and whether they answer.
    Status,
    /// Print their URLs and tools as shell exports.
    Env,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Up => {
                let (servers, _) = up()?;
                servers.print_status();
            }
            Command::Down => down()?,
            Command::Status => match running()? {
                Some(servers) => servers.print_status(),
                None => println!("no servers are running; `cargo xtask servers up` starts them"),
            },
            Command::Env => {
                let servers =
                    running()?.context("no servers are running: run `cargo xtask servers up`")?;
                for (name, value) in servers.variables() {
                    println!("export {name}='{value}'");
                }
            }
        }
        Ok(())
    }
}

/// Running servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Servers {
    origin: Origin,
    /// Environment variables and their values.
    pub(crate) urls: BTreeMap<String, String>,
    /// Programs that some tests need: environment variables and paths.
    #[serde(default)]
    tools: BTreeMap<String, String>,
    /// Empty unless they are private.
    processes: Vec<Process>,
    /// Their versions, for people to read; empty unless they are private.
    #[serde(default)]
    versions: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Origin {
    Environment,
    Compose,
    Private,
}

/// Finds or starts servers. `true` if it started them.
fn up() -> Result<(Servers, bool)> {
    let _turn = turn()?;
    if let Some(servers) = running()? {
        return Ok((servers, false));
    }
    let servers = match Compose::newest().up(&folder()) {
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
        println!("no servers to stop: `cargo xtask servers up` has started none");
        return Ok(());
    };
    match servers.origin {
        Origin::Environment => {}
        Origin::Compose => Compose::newest().down()?,
        Origin::Private => {
            servers.end();
            private::remove_data(&folder(), Purpose::Tests)?;
        }
    }
    fs::remove_file(record())?;
    Ok(())
}

/// The servers that the environment names, or those that an earlier command started, if they still run.
fn running() -> Result<Option<Servers>> {
    let urls: BTreeMap<String, String> = NEEDED
        .into_iter()
        .chain([MANAGEMENT])
        .filter_map(|name| Some((name.to_owned(), env::var(name).ok()?)))
        .collect();
    let named = NEEDED.iter().filter(|name| urls.contains_key(**name)).count();
    if named == NEEDED.len() {
        let servers = Servers {
            origin: Origin::Environment,
            urls,
            tools: BTreeMap::new(),
            processes: Vec::new(),
            versions: String::new(),
        };
        for name in NEEDED {
            let url = &servers.urls[name];
            let address =
                address(url).with_context(|| format!("{name} is not a URL with a host"))?;
            if !is_open(&address) {
                bail!("{name} names {address}, but nothing listens there");
            }
        }
        return Ok(Some(servers));
    }
    if named > 0 {
        bail!("set all of {}, or none of them", NEEDED.join(", "));
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
        Self { origin, urls, tools: BTreeMap::new(), processes, versions: String::new() }
    }

    fn with_versions(mut self, versions: String) -> Self {
        self.versions = versions;
        self
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

    /// Names and process numbers of private servers: `postgres=1,mysql=2`.
    pub(crate) fn pids(&self) -> String {
        let pids: Vec<String> = self.processes.iter().map(Process::text).collect();
        pids.join(",")
    }

    /// Whether nobody else uses them.
    pub(crate) fn are_ours(&self) -> bool {
        self.origin != Origin::Environment
    }

    /// The environment variables of tests.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&String, &String)> {
        self.urls.iter().chain(&self.tools)
    }

    pub(crate) fn print_status(&self) {
        let origin = match self.origin {
            Origin::Environment => "from the environment",
            Origin::Compose => "docker compose",
            Origin::Private => "private, in target/servers",
        };
        println!("servers ({origin}):");
        if !self.versions.is_empty() {
            println!("  {}", self.versions);
        }
        for (name, url) in &self.urls {
            let address = address(url).unwrap_or_default();
            println!("  {name:<24} {address} {}", if is_open(&address) { "up" } else { "DOWN" });
        }
    }
}

/// Two commands at the same time must not both start servers.
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

/// Writes a script that runs a command with further arguments; returns its path.
fn script(path: &Path, command: &process::Command) -> Result<String> {
    // The debug format of a command is shell syntax.
    fs::write(path, format!("#!/bin/sh\n{command:?} \"$@\"\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn is_open(address: &str) -> bool {
    let limit = Duration::from_secs(2);
    let addresses = address.to_socket_addrs().into_iter().flatten();
    addresses.into_iter().any(|address| TcpStream::connect_timeout(&address, limit).is_ok())
}
