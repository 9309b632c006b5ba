//! The servers of `docker-compose.yml`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::versions::OLDEST_IMAGES;
use super::{Origin, Servers, script};
use crate::workspace::root;

const SERVICES: [&str; 3] = ["postgres", "rabbitmq", "mysql"];
/// An engine that does not answer in this time counts as absent.
const ENGINE_LIMIT: Duration = Duration::from_secs(10);
const USER: &str = "app";
const PASSWORD: &str = "app";
const DATABASE: &str = "app";

/// A project of docker compose.
pub(super) struct Compose {
    project: &'static str,
    files: Vec<PathBuf>,
}

impl Compose {
    /// The images of `docker-compose.yml`.
    pub(super) fn newest() -> Self {
        Self { project: "outbox-relay-dev", files: vec![root().join("docker-compose.yml")] }
    }

    /// The same services with the oldest supported images.
    pub(super) fn oldest(folder: &Path) -> Result<Self> {
        let mut images = String::from("services:\n");
        for (service, image) in OLDEST_IMAGES {
            writeln!(images, "  {service}: {{ image: \"{image}\" }}")?;
        }
        let file = folder.join("oldest.yml");
        fs::write(&file, images)?;
        let files = vec![root().join("docker-compose.yml"), file];
        Ok(Self { project: "outbox-relay-oldest", files })
    }

    /// Starts the three servers, if an engine answers and has the images or can get them.
    pub(super) fn up(&self, folder: &Path) -> Result<Servers> {
        answer(Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]))
            .context("no container engine answers")?;
        answer(Command::new("docker").args(["compose", "version"]))
            .context("the engine has no compose")?;
        let mut start = self.command();
        start.args(["up", "--detach", "--wait", "--quiet-pull"]).args(SERVICES);
        if !start.stdin(Stdio::null()).status()?.success() {
            self.down()?;
            bail!("the servers of docker-compose.yml do not start");
        }
        let user = format!("{USER}:{PASSWORD}");
        let postgres = self.address("postgres", 5432)?;
        let mysql = self.address("mysql", 3306)?;
        let urls = [
            ("EVENT_STORE_URL", format!("postgres://{user}@{postgres}/{DATABASE}")),
            ("AMQP_URL", format!("amqp://{user}@{}/%2f", self.address("rabbitmq", 5672)?)),
            ("READ_MODEL_URL", format!("mysql://root:{PASSWORD}@{mysql}/{DATABASE}")),
            (
                "RABBITMQ_MANAGEMENT_URL",
                format!("http://{user}@{}", self.address("rabbitmq", 15672)?),
            ),
        ];
        let mut rabbitmqctl = self.command();
        rabbitmqctl.args(["exec", "--no-TTY", "rabbitmq", "rabbitmqctl"]);
        let path = folder.join(format!("{}-rabbitmqctl", self.project));
        let tools = [("RABBITMQCTL", script(&path, &rabbitmqctl)?)];
        Ok(Servers::new(Origin::Compose, urls, Vec::new()).with_tools(tools))
    }

    /// Stops them and removes their data.
    pub(super) fn down(&self) -> Result<()> {
        let status = self.command().args(["down", "--volumes"]).stdin(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { bail!("docker compose down failed") }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.args(["compose", "--project-name", self.project]).current_dir(root());
        for file in &self.files {
            command.arg("--file").arg(file);
        }
        // Any free port of the host.
        let ports = ["POSTGRES_PORT", "AMQP_PORT", "MANAGEMENT_PORT", "MYSQL_PORT"];
        command.envs(ports.map(|name| (name, "0")));
        command
    }

    /// Host and port where a port of a service can be reached.
    fn address(&self, service: &str, port: u16) -> Result<String> {
        let output = self.command().args(["port", service, &port.to_string()]).output()?;
        let text = String::from_utf8(output.stdout)?;
        let address = text.trim();
        if address.is_empty() {
            bail!("{service} has no port {port}");
        }
        Ok(address.to_owned())
    }
}

/// Runs a command that must succeed soon.
fn answer(command: &mut Command) -> Result<()> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = quiet.spawn()?;
    let started = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("{status}"),
            None if started.elapsed() > ENGINE_LIMIT => {
                child.kill()?;
                child.wait()?;
                bail!("no answer within {} s", ENGINE_LIMIT.as_secs());
            }
            None => sleep(Duration::from_millis(50)),
        }
    }
}
