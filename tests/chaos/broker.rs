//! What an operator can do to a broker.

use std::env;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::wire;

const LIMIT: Duration = Duration::from_secs(10);
const CONTROL_LIMIT: Duration = Duration::from_mins(1);

/// The management API of one virtual host.
#[derive(Clone)]
pub(crate) struct Management {
    url: String,
    vhost: String,
}

/// A binding that can be declared again.
#[derive(Clone, PartialEq)]
pub(crate) struct Binding {
    pub(crate) path: String,
    properties_key: String,
    body: Value,
}

impl Management {
    pub(crate) fn of(vhost: &str) -> Self {
        let url = env::var("RABBITMQ_MANAGEMENT_URL").expect("the management API");
        Self { url, vhost: vhost.to_owned() }
    }

    /// The queues of projections.
    pub(crate) async fn queues(&self) -> Result<Vec<String>, String> {
        let all = self.call("GET", &format!("queues/{}", self.vhost), Value::Null).await?;
        let names = all.as_array().into_iter().flatten().filter_map(|queue| queue["name"].as_str());
        let mut queues: Vec<String> = names
            .filter(|name| name.starts_with("projector.") && !is_for_dead_letters(name))
            .map(str::to_owned)
            .collect();
        queues.sort();
        if queues.is_empty() { Err("there is no queue".to_owned()) } else { Ok(queues) }
    }

    /// The queues that are not empty, with their messages, and how many of those are delivered.
    pub(crate) async fn backlog(&self) -> Result<Vec<String>, String> {
        let all = self.call("GET", &format!("queues/{}", self.vhost), Value::Null).await?;
        let some = all.as_array().into_iter().flatten().filter(|queue| queue["messages"] != 0);
        let describe = |queue: &Value| {
            let (name, unacked) = (&queue["name"], &queue["messages_unacknowledged"]);
            format!("{name}: {} of which {unacked} delivered", queue["messages"])
        };
        Ok(some.map(describe).collect())
    }

    /// The queues that are not idle. An idle queue is empty and has a consumer; a dead-letter queue needs none.
    pub(crate) async fn unsettled(&self) -> Result<Vec<String>, String> {
        let mut unsettled = self.backlog().await?;
        let all = self.call("GET", &format!("queues/{}", self.vhost), Value::Null).await?;
        for queue in all.as_array().into_iter().flatten() {
            let name = queue["name"].as_str().unwrap_or_default();
            if !is_for_dead_letters(name)
                && queue["consumers"].as_u64().is_none_or(|some| some == 0)
            {
                unsettled.push(format!("{name}: no consumer"));
            }
        }
        Ok(unsettled)
    }

    /// The number of dead letters.
    pub(crate) async fn dead_letters(&self) -> Result<u64, String> {
        let all = self.call("GET", &format!("queues/{}", self.vhost), Value::Null).await?;
        let dead = all
            .as_array()
            .into_iter()
            .flatten()
            .filter(|queue| queue["name"].as_str().is_some_and(is_for_dead_letters));
        Ok(dead.filter_map(|queue| queue["messages"].as_u64()).sum())
    }

    pub(crate) async fn delete_queue(&self, queue: &str) -> Result<(), String> {
        self.call("DELETE", &format!("queues/{}/{queue}", self.vhost), Value::Null).await.map(drop)
    }

    pub(crate) async fn purge_queue(&self, queue: &str) -> Result<(), String> {
        let path = format!("queues/{}/{queue}/contents", self.vhost);
        self.call("DELETE", &path, Value::Null).await.map(drop)
    }

    /// The bindings of the exchange; that of the wire queue comes first.
    pub(crate) async fn bindings(&self) -> Result<Vec<Binding>, String> {
        let path = format!("exchanges/{}/events/bindings/source", self.vhost);
        let found = self.call("GET", &path, Value::Null).await?;
        let mut bindings = Vec::new();
        for binding in found.as_array().into_iter().flatten() {
            let text = |key: &str| binding[key].as_str().unwrap_or_default().to_owned();
            let kind = if text("destination_type") == "queue" { "q" } else { "e" };
            let destination = text("destination");
            let path = format!("bindings/{}/e/events/{kind}/{destination}", self.vhost);
            let body =
                json!({ "routing_key": binding["routing_key"], "arguments": binding["arguments"] });
            bindings.push(Binding { path, properties_key: text("properties_key"), body });
        }
        bindings.sort_by_key(|binding| !binding.path.ends_with(wire::QUEUE));
        Ok(bindings)
    }

    /// Removes bindings, that of the wire queue last: it receives everything that any other queue receives.
    pub(crate) async fn unbind(&self, bindings: &[Binding]) -> Result<(), String> {
        for Binding { path, properties_key, .. } in bindings.iter().rev() {
            let key = properties_key.replace('%', "%25").replace('#', "%23");
            self.call("DELETE", &format!("{path}/{key}"), Value::Null).await?;
        }
        Ok(())
    }

    /// Declares the bindings again.
    pub(crate) async fn bind(&self, bindings: &[Binding]) -> Result<(), String> {
        for Binding { path, body, .. } in bindings {
            self.call("POST", path, body.clone()).await?;
        }
        Ok(())
    }

    /// Makes the wire queue refuse messages.
    pub(crate) async fn refuse(&self) -> Result<(), String> {
        let definition = json!({ "max-length": 1, "overflow": "reject-publish" });
        let pattern = format!("^{}$", wire::QUEUE.replace('.', "\\."));
        let body = json!({ "pattern": pattern, "definition": definition, "apply-to": "queues" });
        self.call("PUT", &format!("policies/{}/refuse", self.vhost), body).await.map(drop)
    }

    pub(crate) async fn accept_again(&self) -> Result<(), String> {
        let path = format!("policies/{}/refuse", self.vhost);
        self.call("DELETE", &path, Value::Null).await.map(drop)
    }

    async fn call(&self, method: &'static str, path: &str, body: Value) -> Result<Value, String> {
        let url = format!("{}/api/{path}", self.url.trim_end_matches('/'));
        let call = spawn_blocking(move || {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(LIMIT)).build().into();
            let body = body.to_string();
            let json = "application/json";
            let answer = match method {
                "GET" => agent.get(&url).call(),
                "DELETE" => agent.delete(&url).call(),
                "POST" => agent.post(&url).content_type(json).send(&body),
                _ => agent.put(&url).content_type(json).send(&body),
            };
            let mut answer = answer.map_err(|error| format!("{method}: {error}"))?;
            let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
            Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
        });
        call.await.map_err(|error| error.to_string())?
    }
}

fn is_for_dead_letters(queue: &str) -> bool {
    queue.rsplit('.').next() == Some("dead")
}

/// Calls `rabbitmqctl`.
pub(crate) async fn control(arguments: &[&str]) -> Result<(), String> {
    let program = env::var_os("RABBITMQCTL").ok_or("there is no rabbitmqctl")?;
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    match timeout(CONTROL_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        _ => Err(format!("rabbitmqctl {} failed", arguments.join(" "))),
    }
}
