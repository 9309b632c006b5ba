//! A private MySQL.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{NAME, Private, greets, wait};
use crate::process::Process;

impl Private<'_> {
    pub(super) fn initialise_mysql(&self) -> Result<()> {
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

    /// The server.
    pub(super) fn mysqld(&self) -> Result<Command> {
        let mut command = self.mysqld_with(&["--bind-address=127.0.0.1", "--mysqlx=0"])?;
        command
            .arg(format!("--port={}", self.ports.mysql))
            .arg(format!("--pid-file={}", self.path("mysql/pid")))
            // Relative: the path of a socket must be short.
            .args(["--socket=socket", "--max-connections=400", "--skip-log-bin"]);
        if !self.purpose.is_durable() {
            command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]);
        }
        Ok(command)
    }

    /// Waits until the server answers.
    pub(super) fn await_mysql(&self) -> Result<Process> {
        let process = self.process("mysql", "mysql/pid")?;
        wait("mysql", || greets(self.ports.mysql, b""))?;
        Ok(process)
    }

    fn mysqld_with(&self, options: &[&str]) -> Result<Command> {
        let mut command = self.mysql_command("mysqld")?;
        command
            .arg("--no-defaults")
            .args(self.trees.mysql.mysqld_options())
            .arg(format!("--datadir={}", self.path("mysql/data")))
            .arg("--secure-file-priv=")
            .args(options);
        Ok(command)
    }

    /// A program of MySQL.
    pub(super) fn mysql_command(&self, program: &str) -> Result<Command> {
        self.command(&self.trees.mysql, &[], program)
    }
}
