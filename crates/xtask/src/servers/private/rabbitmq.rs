//! A private RabbitMQ.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{NAME, Ports, Private, greets, wait};
use crate::process::Process;

const LIBRARIES: &str = "usr/lib/rabbitmq/lib";
/// The folder in there; the version follows.
const HOME: &str = "rabbitmq_server-";

impl Private<'_> {
    /// The server.
    pub(super) fn rabbitmq(&self) -> Result<Command> {
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
        self.rabbitmq_command("rabbitmq-server")
    }

    /// Waits until the server answers.
    pub(super) fn await_rabbitmq(&self) -> Result<Process> {
        let process = self.process("rabbitmq", "rabbitmq/pid")?;
        wait("rabbitmq", || greets(self.ports.amqp, b"AMQP\x00\x00\x09\x01"))?;
        Ok(process)
    }

    /// RabbitMQ leaves its port mapper running.
    pub(super) fn epmd(&self) -> Result<Process> {
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

    /// A program of RabbitMQ.
    pub(super) fn rabbitmq_command(&self, program: &str) -> Result<Command> {
        let tree = &self.trees.rabbitmq;
        let home = format!("{LIBRARIES}/{HOME}{}", self.rabbitmq_version()?);
        let path = |part: &str| self.path(&format!("rabbitmq/{part}"));
        let variables = [
            ("RABBITMQ_NODENAME", "rabbit@localhost".to_owned()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", self.ports.amqp.to_string()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            ("ERL_EPMD_PORT", self.ports.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_MNESIA_BASE", path("db")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", path("generated")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_PID_FILE", path("pid")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_HOME", tree.path(&home).display().to_string()),
        ];
        self.command(tree, &variables, program)
    }

    pub(super) fn rabbitmq_version(&self) -> Result<String> {
        let folders = self.trees.rabbitmq.list(LIBRARIES)?;
        let version = folders.iter().find_map(|name| name.strip_prefix(HOME));
        version.map(str::to_owned).context("no RabbitMQ in the tree")
    }
}
