//! The servers of `docker-compose.yml`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Origin, Servers, script};
use crate::workspace::root;

const PROJECT: &str = "outbox-relay-dev";
const SERVICES: [&str; 3] = ["postgres", "rabbitmq", "mysql"];
/// An engine that does not answer in this time is none.
const ENGINE_LIMIT: Duration = Duration::from_secs(10);
const USER: &str = "app";
const PASSWORD: &str = "app";
const DATABASE: &str = "app";

/// Starts the three servers, if there is an engine, and images that can be had.
pub(super) fn up(folder: &Path) -> Result<Servers> {
    answer(Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]))
        .context("no container engine answers")?;
    answer(Command::new("docker").args(["compose", "version"]))
        .context("the engine has no compose")?;
    let mut start = compose();
    start.args(["up", "--detach", "--wait", "--quiet-pull"]).args(SERVICES);
    if !start.stdin(Stdio::null()).status()?.success() {
        down()?;
        bail!("the servers of docker-compose.yml do not start");
    }
    let user = format!("{USER}:{PASSWORD}");
    let urls = [
        ("EVENT_STORE_URL", format!("postgres://{user}@{}/{DATABASE}", port("postgres", 5432)?)),
        ("AMQP_URL", format!("amqp://{user}@{}/%2f", port("rabbitmq", 5672)?)),
        ("READ_MODEL_URL", format!("mysql://root:{PASSWORD}@{}/{DATABASE}", port("mysql", 3306)?)),
        ("RABBITMQ_MANAGEMENT_URL", format!("http://{user}@{}", port("rabbitmq", 15672)?)),
    ];
    let mut rabbitmqctl = compose();
    rabbitmqctl.args(["exec", "--no-TTY", "rabbitmq", "rabbitmqctl"]);
    let tools = [("RABBITMQCTL", script(&folder.join("rabbitmqctl"), &rabbitmqctl)?)];
    Ok(Servers::new(Origin::Compose, urls, Vec::new()).with_tools(tools))
}

/// Stops them and removes their data.
pub(super) fn down() -> Result<()> {
    let status = compose().args(["down", "--volumes"]).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { bail!("docker compose down failed") }
}

fn compose() -> Command {
    let mut command = Command::new("docker");
    command
        .args(["compose", "--project-name", PROJECT])
        .current_dir(root())
        // Any free port of the host.
        .envs(
            ["POSTGRES_PORT", "AMQP_PORT", "MANAGEMENT_PORT", "MYSQL_PORT"].map(|name| (name, "0")),
        );
    command
}

/// Where a port of a service can be reached.
fn port(service: &str, port: u16) -> Result<String> {
    let output = compose().args(["port", service, &port.to_string()]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let address = text.trim();
    if address.is_empty() {
        bail!("{service} has no port {port}");
    }
    Ok(address.to_owned())
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
