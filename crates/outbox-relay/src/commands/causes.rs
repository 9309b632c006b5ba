//! Why events are not published: what `outbox-relay status` concludes.

use event_store::{LaneLocker, OpenWriter, Relay, Status, UnroutableKey};
use serde::Serialize;

/// A transaction that has been open for so long is worth a look.
const LONG_TRANSACTION_SECONDS: f64 = 60.0;

/// How urgent a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Everything works.
    Ok,
    /// Somebody should look: some streams wait, or publishing is slow.
    Attention,
    /// Nothing is published, or the events of whole lanes are not.
    Broken,
}

/// A reason why events are not published, with its object and the remedy.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cause {
    pub(crate) state: State,
    pub(crate) text: String,
}

/// All causes, the most urgent first.
pub(crate) fn causes(status: &Status) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut add = |state, text| causes.push(Cause { state, text });
    if status.relays.is_empty() {
        add(State::Broken, "no relay is connected: start one with `outbox-relay run`".to_owned());
    }
    for relay in &status.relays {
        if let Some((state, text)) = of_relay(relay) {
            add(state, text);
        }
    }
    for LaneLocker { pid, application_name, age_seconds, lanes } in &status.lane_lockers {
        let (who, age) = (session(*pid, application_name), age(*age_seconds));
        add(
            State::Broken,
            format!(
                "{who} has locked {lanes} of 64 lanes in outbox_lanes{age}: end its transaction{}",
                remedy(*pid)
            ),
        );
    }
    for OpenWriter { pid, application_name, age_seconds } in &status.open_writers {
        if age_seconds.is_none_or(|age| age >= LONG_TRANSACTION_SECONDS) {
            let (who, age) = (session(*pid, application_name), age(*age_seconds));
            let remedy = remedy(*pid);
            add(
                State::Attention,
                format!("{who} holds up the fence with an open transaction{age}: end it{remedy}"),
            );
        }
    }
    for UnroutableKey { routing_key, streams, events } in &status.unroutable {
        add(
            State::Attention,
            format!(
                "no queue is bound for {routing_key}: {events} events of {streams} streams wait for one: \
                 start its consumer, or bind a queue to the exchange"
            ),
        );
    }
    for waiting in &status.waiting {
        let (streams, reason) = (waiting.streams, &waiting.reason);
        if waiting.parked {
            add(
                State::Attention,
                format!("{streams} streams are parked ({reason}): see `outbox-relay parked list`"),
            );
        } else if reason == "nacked" {
            add(
                State::Attention,
                format!("RabbitMQ rejects events of {streams} streams: check for a full queue"),
            );
        }
    }
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.state));
    causes
}

fn of_relay(relay: &Relay) -> Option<(State, String)> {
    let report = relay.application_name.strip_prefix(Relay::NAME)?.strip_prefix(": ")?;
    let host = relay.client.as_deref().unwrap_or("this host");
    let relay = format!("the relay on {host} (session {} in PostgreSQL)", relay.pid);
    if let Some(rate) = report.strip_prefix("RabbitMQ ") {
        return Some((State::Attention, format!("{relay} is slow: the broker {rate}")));
    }
    let since = report.strip_prefix("no RabbitMQ ")?;
    let text = format!(
        "{relay} cannot publish to RabbitMQ {since}: its /readyz and its log give the address and the \
         reason"
    );
    Some((State::Broken, text))
}

fn session(pid: Option<i32>, application_name: &str) -> String {
    pid.map_or_else(
        || "a prepared transaction".to_owned(),
        |pid| format!("pid {pid} ({application_name:?})"),
    )
}

fn age(seconds: Option<f64>) -> String {
    seconds.map_or_else(String::new, |age| format!(" for {age:.0} s"))
}

fn remedy(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", or run SELECT pg_terminate_backend({pid})"))
}
