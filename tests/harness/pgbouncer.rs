//! A connection pooler in front of PostgreSQL.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::Command;
use url::Url;

use crate::{Stack, eventually};

/// `PgBouncer` in transaction mode. Dropping it ends the process.
pub struct PgBouncer {
    folder: PathBuf,
}

impl PgBouncer {
    /// Starts the pooler in front of a test's database, if the environment variable `PGBOUNCER`
    /// names the program. Returns the URL of the database through the pooler.
    ///
    /// # Panics
    ///
    /// When the pooler does not start.
    pub async fn before(stack: &Stack) -> Option<(Self, String)> {
        let program = PathBuf::from(env::var_os("PGBOUNCER")?);
        // The program can read only files in its own folder.
        let folder = program.parent().unwrap_or(Path::new("/")).join(stack.name());
        fs::create_dir_all(&folder).expect("the folder is created");
        let server = Url::parse(&stack.postgres_url).expect("the URL is valid");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = free.local_addr().expect("the port has an address").port();
        drop(free);
        let (host, user) = (server.host_str().unwrap_or_default(), server.username());
        let password = server.password().unwrap_or_default();
        let path = |name: &str| folder.join(name).display().to_string();
        let settings = format!(
            "[databases]
             * = host={host} port={server_port}
             [pgbouncer]
             listen_addr = 127.0.0.1
             listen_port = {port}
             unix_socket_dir =
             pool_mode = transaction
             default_pool_size = 5
             auth_type = plain
             auth_file = {users}
             logfile = {log}
             pidfile = {pid}
             ",
            server_port = server.port().unwrap_or(5432),
            users = path("users"),
            log = path("log"),
            pid = path("pid"),
        );
        let settings: Vec<_> = settings.lines().map(str::trim_start).collect();
        fs::write(folder.join("settings.ini"), settings.join("\n"))
            .expect("the settings are written");
        fs::write(folder.join("users"), format!("\"{user}\" \"{password}\"\n"))
            .expect("the users are written");
        let pooler = Self { folder: folder.clone() };
        let started = Command::new(program)
            .arg("--daemon")
            .arg(path("settings.ini"))
            .stdin(Stdio::null())
            .status()
            .await;
        assert!(started.expect("the pooler starts").success(), "{}", pooler.log());
        eventually("the pooler listens", async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok().map(drop)
        })
        .await;
        let mut through = server;
        through.set_host(Some("127.0.0.1")).expect("the URL takes a host");
        through.set_port(Some(port)).expect("a port is free");
        Some((pooler, through.to_string()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.folder.join("pid")).ok();
        let pid = pid.and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).ok();
        }
        drop(fs::remove_dir_all(&self.folder));
    }
}
