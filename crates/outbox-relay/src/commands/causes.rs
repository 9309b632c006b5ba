//! Why events are not published: what `outbox-relay status` concludes.

use daemon::cause::{Cause, State};
use daemon::output::counted;
use event_store::{
    LaneLocker, OpenTransaction, Relay, RelayReport, Status, UnroutableKey, WaitingStreams,
};

/// All causes, the most urgent first.
pub(crate) fn causes(status: &Status) -> Vec<Cause> {
    let mut causes = Vec::new();
    if status.relays.is_empty() {
        causes.push(Cause {
            state: State::Broken,
            cause: "no_relay",
            object: None,
            // The end of a session leaves no trace in PostgreSQL.
            since: None,
            text: "no relay is connected".to_owned(),
            remedy: "start one with `outbox-relay run`".to_owned(),
        });
    }
    causes.extend(status.relays.iter().filter_map(of_relay));
    causes.extend(status.lane_lockers.iter().map(of_locker));
    causes.extend(status.open_writers.iter().filter(|it| it.is_long()).map(of_writer));
    causes.extend(status.unroutable.iter().map(of_key));
    causes.extend(status.waiting.iter().filter_map(of_waiting));
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.state));
    causes
}

fn of_relay(relay: &Relay) -> Option<Cause> {
    let RelayReport { slow, since } = relay.report()?;
    let object = relay.to_string();
    let (state, cause, text, remedy) = match slow {
        Some(rate) => (
            State::Attention,
            "broker_slow",
            format!("{object} is slow: the broker confirms {rate}"),
            "check the load of RabbitMQ and the network to it",
        ),
        None => (
            State::Broken,
            "broker_away",
            format!("{object} cannot publish to RabbitMQ"),
            "its /readyz and its log give the address and the reason",
        ),
    };
    let remedy = remedy.to_owned();
    Some(Cause { state, cause, object: Some(object), since, text, remedy })
}

/// A transaction that has locked lanes.
pub(crate) fn of_locker(locker: &LaneLocker) -> Cause {
    let LaneLocker { transaction: session, lanes } = locker;
    let lanes = counted(lanes, "lane", "lanes");
    Cause {
        state: State::Broken,
        cause: "lanes_locked",
        object: Some(session.to_string()),
        since: session.since,
        text: format!("{session} has locked {lanes} of 64 in outbox_lanes"),
        remedy: session.remedy(),
    }
}

fn of_writer(writer: &OpenTransaction) -> Cause {
    Cause {
        state: State::Attention,
        cause: "transaction_open",
        object: Some(writer.to_string()),
        since: writer.since,
        text: writer.as_writer(),
        remedy: writer.remedy(),
    }
}

fn of_key(key: &UnroutableKey) -> Cause {
    let UnroutableKey { routing_key, streams, events, since } = key;
    let (streams, events) =
        (counted(streams, "stream", "streams"), counted(events, "event", "events"));
    let wait = if key.events == 1 { "waits" } else { "wait" };
    Cause {
        state: State::Attention,
        cause: "unroutable",
        object: Some(routing_key.clone()),
        since: Some(*since),
        text: format!("no queue is bound for {routing_key}: {events} of {streams} {wait} for one"),
        remedy: "start its consumer, or bind a queue to the exchange".to_owned(),
    }
}

/// Streams that wait for another reason than a queue that is not bound.
fn of_waiting(waiting: &WaitingStreams) -> Option<Cause> {
    let WaitingStreams { reason, parked, streams, since } = waiting;
    let (cause, text, remedy) = if *parked {
        let streams = counted(streams, "stream is", "streams are");
        let remedy = "see `outbox-relay parked list`, then retry or skip their events";
        ("parked", format!("{streams} parked ({reason})"), remedy)
    } else if reason == "nacked" {
        let streams = counted(streams, "stream", "streams");
        ("nacked", format!("RabbitMQ rejects events of {streams}"), "check for a full queue")
    } else {
        return None;
    };
    Some(Cause {
        state: State::Attention,
        cause,
        object: Some(reason.clone()),
        since: Some(*since),
        text,
        remedy: remedy.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use event_store::Rates;

    use super::*;

    fn relay(application_name: &str) -> Relay {
        let application_name = application_name.to_owned();
        Relay { pid: 7, application_name, client: Some("10.0.0.1".to_owned()) }
    }

    fn status() -> Status {
        Status {
            pending: 0,
            held: 0,
            delayed: 0,
            oldest_age_seconds: 0.0,
            oldest_held_age_seconds: 0.0,
            lanes: Vec::new(),
            categories: Vec::new(),
            waiting: Vec::new(),
            unroutable: Vec::new(),
            rates: Rates::default(),
            open_writers: Vec::new(),
            relays: vec![relay(Relay::NAME), relay("outbox-relay worker")],
            lane_lockers: Vec::new(),
        }
    }

    fn session(age_seconds: f64) -> OpenTransaction {
        OpenTransaction {
            pid: Some(17),
            application_name: "psql".to_owned(),
            prepared: None,
            since: Some(since()),
            age_seconds: Some(age_seconds),
        }
    }

    fn since() -> DateTime<Utc> {
        "2026-01-31T09:30:00Z".parse().unwrap()
    }

    /// The state and the lines of a status with one change.
    fn found(change: impl FnOnce(&mut Status)) -> (State, Vec<String>) {
        let mut status = status();
        change(&mut status);
        let causes = causes(&status);
        let state = causes.first().map_or(State::Ok, |cause| cause.state);
        for cause in &causes {
            assert_eq!(cause.since.is_none(), cause.cause == "no_relay", "{cause:?}");
            assert_eq!(cause.object.is_none(), cause.cause == "no_relay", "{cause:?}");
        }
        (state, causes.iter().map(Cause::line).collect())
    }

    /// Each cause has a state, an object, a time and a remedy.
    #[test]
    fn each_cause_says_what_is_wrong_since_when_and_what_to_do() {
        assert_eq!(found(|_| {}), (State::Ok, Vec::new()));
        let broken = |line: &str| (State::Broken, vec![line.to_owned()]);
        let attention = |line: &str| (State::Attention, vec![line.to_owned()]);
        let none = "no relay is connected: start one with `outbox-relay run`";
        assert_eq!(found(|status| status.relays.clear()), broken(none));
        let report = |text: &str| {
            let relay = relay(&format!("{}: {text} since 2026-01-31T09:30:00Z", Relay::NAME));
            found(|status| status.relays.push(relay))
        };
        assert_eq!(
            report("no RabbitMQ"),
            broken(
                "the relay on 10.0.0.1 (session 7 in PostgreSQL) cannot publish to RabbitMQ since \
                 2026-01-31T09:30:00Z: its /readyz and its log give the address and the reason"
            )
        );
        assert_eq!(
            report("slow 3.4/s"),
            attention(
                "the relay on 10.0.0.1 (session 7 in PostgreSQL) is slow: the broker confirms 3.4/s \
                 since 2026-01-31T09:30:00Z: check the load of RabbitMQ and the network to it"
            )
        );
        let locker = LaneLocker { transaction: session(3.0), lanes: 1 };
        assert_eq!(
            found(|status| status.lane_lockers.push(locker)),
            broken(
                "pid 17 (\"psql\") has locked 1 lane of 64 in outbox_lanes since 2026-01-31T09:30:00Z: \
                 end its transaction, or run SELECT pg_terminate_backend(17)"
            )
        );
        assert_eq!(
            found(|status| status.open_writers.push(session(59.0))),
            (State::Ok, Vec::new())
        );
        assert_eq!(
            found(|status| status.open_writers.push(session(61.0))),
            attention(
                "pid 17 (\"psql\") has appended and not ended, so that no order of events is decided \
                 since 2026-01-31T09:30:00Z: end its transaction, or run SELECT pg_terminate_backend(17)"
            )
        );
        let key = UnroutableKey {
            routing_key: "mail.Sent".to_owned(),
            streams: 1,
            events: 1,
            since: since(),
        };
        assert_eq!(
            found(|status| status.unroutable.push(key)),
            attention(
                "no queue is bound for mail.Sent: 1 event of 1 stream waits for one since \
                 2026-01-31T09:30:00Z: start its consumer, or bind a queue to the exchange"
            )
        );
        let waiting = |reason: &str, parked| {
            let reason = reason.to_owned();
            found(|status| {
                status.waiting.push(WaitingStreams { reason, parked, streams: 2, since: since() });
            })
        };
        assert_eq!(
            waiting("too_large", true),
            attention(
                "2 streams are parked (too_large) since 2026-01-31T09:30:00Z: see `outbox-relay parked \
                 list`, then retry or skip their events"
            )
        );
        assert_eq!(
            waiting("nacked", false),
            attention(
                "RabbitMQ rejects events of 2 streams since 2026-01-31T09:30:00Z: check for a full queue"
            )
        );
        assert_eq!(waiting("delayed", false), (State::Ok, Vec::new()));
    }
}
