//! A private PostgreSQL.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{NAME, Private, wait};
use crate::process::Process;

impl Private<'_> {
    pub(super) fn initialise_postgres(&self) -> Result<()> {
        fs::write(self.data.join("password"), NAME)?;
        let mut initdb = self.postgres_command("initdb")?;
        initdb
            .args(["-D", &self.path("postgres"), "-U", NAME, "-E", "UTF8", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", self.path("password")))
            .args(["--auth-host=scram-sha-256", "--no-sync"]);
        self.run("postgres", &mut initdb)
    }

    /// The server.
    pub(super) fn postgres(&self) -> Result<Command> {
        let mut command = self.postgres_command("postgres")?;
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

    /// Waits until the server answers, and creates the database.
    pub(super) fn await_postgres(&self) -> Result<Process> {
        let process = self.process("postgres", "postgres/postmaster.pid")?;
        wait("postgres", || self.psql("postgres", "SELECT 1").is_ok())?;
        self.psql("postgres", &format!("CREATE DATABASE {NAME}"))?;
        Ok(process)
    }

    fn psql(&self, database: &str, sql: &str) -> Result<()> {
        let mut psql = self.postgres_command("psql")?;
        psql.args(["-h", "127.0.0.1", "-p", &self.ports.postgres.to_string(), "-U", NAME])
            .args(["-d", database, "-qtAc", sql]);
        self.run("psql", &mut psql)
    }

    /// A program of PostgreSQL.
    pub(super) fn postgres_command(&self, program: &str) -> Result<Command> {
        self.command(&self.trees.postgres, &[("PGPASSWORD", NAME.to_owned())], program)
    }
}
