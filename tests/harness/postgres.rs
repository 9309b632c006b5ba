//! PostgreSQL servers of a test's own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::Connection;
use sqlx::postgres::PgConnection;

/// The user, who has no password, and the database.
const NAME: &str = "shop";

/// A PostgreSQL server of a test's own, with the database `shop`. Dropping it ends the server and removes its
/// data.
pub struct PostgresServer {
    programs: Programs,
    folder: PathBuf,
    url: String,
}

/// Runs programs of PostgreSQL.
struct Programs {
    script: OsString,
    /// The folder that the programs may write to.
    data: PathBuf,
}

impl Programs {
    /// `None` unless the environment variable `POSTGRES_PROGRAM` names a script that runs them.
    fn find() -> Option<Self> {
        let script = env::var_os("POSTGRES_PROGRAM")?;
        let data = PathBuf::from(env::var_os("SERVER_DATA")?);
        Some(Self { script, data })
    }

    /// Runs a program, given with its arguments. Returns its output.
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.script)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the script of POSTGRES_PROGRAM starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl PostgresServer {
    /// Starts a server on which logical replication is possible; `None` without the programs of PostgreSQL.
    ///
    /// # Panics
    ///
    /// When the server does not start.
    pub fn start(name: &str) -> Option<Self> {
        let programs = Programs::find()?;
        let folder = programs.data.join(name);
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = free.local_addr().expect("the port has an address").port();
        drop(free);
        let url = format!("postgres://{NAME}@127.0.0.1:{port}/{NAME}");
        let server = Self { programs, folder, url };
        let data = server.path("");
        let locale = ["-E", "UTF8", "--locale=C.UTF-8", "--auth=trust", "--no-sync"];
        server.programs.run(&[&["initdb", "-D", &data, "-U", NAME][..], &locale].concat());
        let settings = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c wal_level=logical"
        );
        let log = server.path("log");
        server.programs.run(&["pg_ctl", "-D", &data, "-l", &log, "-o", &settings, "-w", "start"]);
        let port = port.to_string();
        let login = ["-h", "127.0.0.1", "-p", &port, "-U", NAME];
        server.programs.run(&[&["createdb"][..], &login, &[NAME]].concat());
        Some(server)
    }

    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A connection to the database.
    ///
    /// # Panics
    ///
    /// When the connection fails.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the server accepts the connection")
    }

    /// Runs a shell script that calls programs of PostgreSQL. `variables` have the form `NAME=value`.
    ///
    /// # Panics
    ///
    /// When the script fails.
    pub fn shell(&self, variables: &[&str], script: &str) -> String {
        self.programs.run(&[variables, &["sh", "-euc", script]].concat())
    }

    fn path(&self, inside: &str) -> String {
        self.folder.join(Path::new(inside)).display().to_string()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let stop = ["-m", "immediate", "-w", "stop"];
        let ended = Command::new(&self.programs.script)
            .args(["pg_ctl", "-D", &self.path("")])
            .args(stop)
            .stdin(Stdio::null())
            .output();
        drop(ended);
        drop(fs::remove_dir_all(&self.folder));
    }
}
