//! Private throwaway servers on loopback.
//!
//! Those for tests trade durability for speed: a killed server loses nothing, a lost machine may. Above
//! all their speed no longer depends on the disk: where a flush takes a second, RabbitMQ alone would need a
//! minute to declare the queues of a few tests. Those for benchmarks keep what servers promise.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::getuid;

use super::tree::Tree;
use super::{Origin, Servers, script};
use crate::process::Process;
use crate::workspace::succeed;

/// User, password and database of all three.
const NAME: &str = "dev";
/// Below the range that clients get their ports from: a restarting server must find its port free.
const LAST_PORT: u16 = 32_000;
/// Makes every flush to disk do nothing.
const NO_FLUSH: &str = "usr/lib/x86_64-linux-gnu/libeatmydata.so";
/// Each has a folder of its own.
const SERVERS: [&str; 3] = ["postgres", "mysql", "rabbitmq"];
/// More than a campaign of a million events fills.
const DISK_SIZE: &str = "6g";
const START_LIMIT: Duration = Duration::from_mins(2);

struct Ports {
    postgres: u16,
    amqp: u16,
    management: u16,
    distribution: u16,
    epmd: u16,
    mysql: u16,
}

/// What servers are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Development and tests: they do not flush to disk.
    Tests,
    /// Benchmarks: as they come.
    Bench,
    /// To be broken: as they come, each with a small file system of its own where that is possible, and
    /// scripts that start them again.
    Chaos,
}

impl Purpose {
    /// Each has a range of its own: what seems free may belong to a server that is just being broken.
    fn first_port(self) -> u16 {
        match self {
            Self::Tests => 20_000,
            Self::Bench => 24_000,
            Self::Chaos => 28_000,
        }
    }

    fn data(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::Tests => "data",
            Self::Bench => "durable",
            Self::Chaos => "chaos",
        })
    }
}

/// Starts all three with new data.
pub(super) fn up(folder: &Path, purpose: Purpose) -> Result<Servers> {
    let tree = Tree::at(folder)?;
    let data = purpose.data(folder);
    if let Ok(before) = data.canonicalize() {
        // Perhaps one of them has died, or a start was interrupted.
        end_strays(&before)?;
    }
    remove_data(folder, purpose)?;
    if purpose == Purpose::Chaos {
        for server in SERVERS {
            let disk = data.join(server);
            fs::create_dir_all(&disk)?;
            mount(&disk)?;
        }
    }
    for part in ["postgres", "mysql", "rabbitmq/db", "rabbitmq/log", "rabbitmq/generated", "tools"]
    {
        fs::create_dir_all(data.join(part))?;
    }
    let data = data.canonicalize()?;
    let ports = Ports::free(purpose)?;
    let private = Private { tree, purpose, data: &data, ports };
    let mut processes = Vec::new();
    let started = private.start(&mut processes).and_then(|()| {
        Ok([
            ("RABBITMQCTL", private.tool("rabbitmqctl")?),
            ("PGBOUNCER", private.tool("pgbouncer")?),
            ("SERVER_DATA", data.display().to_string()),
        ])
    });
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
    Ok(Servers::new(Origin::Private, urls, processes).with_tools(tools))
}

/// Ends every program of the tree, whether it was recorded or not: each has the data folder as home.
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

/// Ends servers that may have been started again since, and removes what they have stored.
pub(super) fn end(folder: &Path, purpose: Purpose) -> Result<()> {
    end_strays(&purpose.data(folder).canonicalize()?)?;
    remove_data(folder, purpose)
}

/// Removes what the servers have stored.
pub(super) fn remove_data(folder: &Path, purpose: Purpose) -> Result<()> {
    let data = purpose.data(folder);
    for server in SERVERS {
        let disk = data.join(server);
        if is_mounted(&disk)? {
            succeed(Command::new("umount").arg(disk))?;
        }
    }
    if data.exists() { Ok(fs::remove_dir_all(data)?) } else { Ok(()) }
}

/// Mounts a file system in memory, which can be made full; whoever may not mount goes on without.
fn mount(folder: &Path) -> Result<()> {
    if !getuid().is_root() {
        return Ok(());
    }
    let size = format!("size={DISK_SIZE},mode=0755");
    let mut mount = Command::new("mount");
    if !mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).status()?.success() {
        eprintln!("{} is no file system of its own: it cannot be made full", folder.display());
    }
    Ok(())
}

fn is_mounted(folder: &Path) -> Result<bool> {
    let Ok(folder) = folder.canonicalize() else { return Ok(false) };
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let at = folder.display().to_string();
    Ok(mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(at.as_str())))
}

struct Private<'d> {
    tree: Tree,
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

        processes.push(self.process("postgres", "postgres/postmaster.pid")?);
        wait("postgres", || self.psql("postgres", "SELECT 1").is_ok())?;
        self.psql("postgres", &format!("CREATE DATABASE {NAME}"))?;
        processes.push(self.process("mysql", "mysql/pid")?);
        wait("mysql", || greets(self.ports.mysql, b""))?;
        processes.push(self.process("rabbitmq", "rabbitmq/pid")?);
        wait("rabbitmq", || greets(self.ports.amqp, b"AMQP\x00\x00\x09\x01"))?;
        processes.push(self.epmd()?);
        Ok(())
    }

    fn initialise_postgres(&self) -> Result<()> {
        fs::write(self.data.join("password"), NAME)?;
        let mut initdb = self.command("initdb")?;
        initdb
            .args(["-D", &self.path("postgres"), "-U", NAME, "-E", "UTF8", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", self.path("password")))
            .args(["--auth-host=scram-sha-256", "--no-sync"]);
        self.run("postgres", &mut initdb)
    }

    fn postgres(&self) -> Result<Command> {
        let mut command = self.command("postgres")?;
        command.args(["-D", &self.path("postgres"), "-p", &self.ports.postgres.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=400",
            "max_prepared_transactions=16",
        ] {
            command.args(["-c", setting]);
        }
        Ok(command)
    }

    fn psql(&self, database: &str, sql: &str) -> Result<()> {
        let mut psql = self.command("psql")?;
        psql.args(["-h", "127.0.0.1", "-p", &self.ports.postgres.to_string(), "-U", NAME])
            .args(["-d", database, "-qtAc", sql]);
        self.run("psql", &mut psql)
    }

    fn initialise_mysql(&self) -> Result<()> {
        let sql = format!(
            "CREATE DATABASE {NAME};
             CREATE USER '{NAME}'@'%' IDENTIFIED BY '{NAME}';
             GRANT ALL ON *.* TO '{NAME}'@'%' WITH GRANT OPTION;"
        );
        fs::write(self.data.join("mysql.sql"), sql)?;
        let mut initialise = self.mysqld_with(&["--initialize-insecure"])?;
        initialise.arg(format!("--init-file={}", self.path("mysql.sql")));
        self.run("mysql", &mut initialise)
    }

    fn mysqld(&self) -> Result<Command> {
        let mut command = self.mysqld_with(&["--bind-address=127.0.0.1", "--mysqlx=0"])?;
        command
            .arg(format!("--port={}", self.ports.mysql))
            .arg(format!("--pid-file={}", self.path("mysql/pid")))
            // Relative: the path of a socket must be short.
            .args(["--socket=socket", "--max-connections=400", "--skip-log-bin"]);
        if self.purpose == Purpose::Tests {
            command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]);
        }
        Ok(command)
    }

    fn mysqld_with(&self, options: &[&str]) -> Result<Command> {
        let mut command = self.command("mysqld")?;
        command
            .arg("--no-defaults")
            .args(self.tree.mysqld_options())
            .arg(format!("--datadir={}", self.path("mysql/data")))
            .arg("--secure-file-priv=")
            .args(options);
        Ok(command)
    }

    fn rabbitmq(&self) -> Result<Command> {
        let Ports { amqp, management, .. } = self.ports;
        let configuration = format!(
            "listeners.tcp.default = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
default_user = {NAME}
default_pass = {NAME}
"
        );
        fs::write(self.data.join("rabbitmq/rabbitmq.conf"), configuration)?;
        let plugins = "[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n";
        fs::write(self.data.join("rabbitmq/enabled_plugins"), plugins)?;
        self.command("rabbitmq-server")
    }

    /// RabbitMQ leaves its port mapper running.
    fn epmd(&self) -> Result<Process> {
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let variables = fs::read(path.join("environ")).unwrap_or_default();
            let port = format!("ERL_EPMD_PORT={}", self.ports.epmd);
            let name = command.split(|byte| *byte == 0).next().unwrap_or_default();
            let ours =
                variables.split(|byte| *byte == 0).any(|variable| variable == port.as_bytes());
            if ours && name.ends_with(b"epmd") {
                let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
                return Process::of("epmd", pid.context("a process number")?);
            }
        }
        bail!("epmd is not running")
    }

    fn command(&self, program: &str) -> Result<Command> {
        let libraries = "usr/lib/rabbitmq/lib";
        let version = self.tree.list(libraries)?;
        let version = version.iter().find(|name| name.starts_with("rabbitmq_server-"));
        let home = format!("{libraries}/{}", version.context("no RabbitMQ in the tree")?);
        let rabbitmq = |part: &str| self.path(&format!("rabbitmq/{part}"));
        let no_flush = match self.purpose {
            Purpose::Tests => self.tree.path(NO_FLUSH).display().to_string(),
            Purpose::Bench | Purpose::Chaos => String::new(),
        };
        let variables = [
            ("LD_PRELOAD", no_flush),
            ("PGPASSWORD", NAME.to_owned()),
            ("RABBITMQ_NODENAME", "rabbit@localhost".to_owned()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", self.ports.amqp.to_string()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            ("ERL_EPMD_PORT", self.ports.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_MNESIA_BASE", rabbitmq("db")),
            ("RABBITMQ_LOG_BASE", rabbitmq("log")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", rabbitmq("generated")),
            ("RABBITMQ_CONFIG_FILE", rabbitmq("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", rabbitmq("enabled_plugins")),
            ("RABBITMQ_PID_FILE", rabbitmq("pid")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_HOME", self.tree.path(&home).display().to_string()),
        ];
        self.tree.command(self.data, &variables, program)
    }

    /// A script that runs a program of the tree; it sees files beside itself.
    fn tool(&self, program: &str) -> Result<String> {
        script(&self.data.join("tools").join(program), &self.command(program)?)
    }

    /// Starts a server again as it was started first.
    fn start_script(&self, server: &str, command: &Command) -> Result<()> {
        script(&self.data.join("tools").join(format!("start-{server}")), command).map(drop)
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

/// Whether a server answers on a port, to what a client says first.
fn greets(port: u16, first: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut answer = [0; 1];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(first).is_ok()
        && stream.read_exact(&mut answer).is_ok()
}
