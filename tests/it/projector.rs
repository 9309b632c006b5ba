//! The projector as a process.

use std::time::Duration;

use broker::{Outcome, Publisher};
use domain_events::{Event, EventId, HeaderValue, Message, StreamId, StreamRange, StreamVersion};
use harness::{Daemon, Mode, Proxy, Stack, event, eventually};
use lapin::options::BasicGetOptions;
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tokio::time::sleep;
use uuid::Uuid;

pub(crate) const TALLY: &str = "tests/projections/tally";
pub(crate) const QUEUE: &str = "projector.tally";
pub(crate) const DEAD: &str = "projector.tally.dead";

/// Runs a test with a relay and a projector with the projection `tally`.
pub(crate) async fn with_projector(test: impl AsyncFnOnce(&Stack, &mut Daemon)) {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let mut projector = stack.projector(TALLY).start_ready().await;
        test(stack, &mut projector).await;
    })
    .await;
}

pub(crate) fn tested(n: &Value) -> Value {
    event("Tested", &json!({ "n": n }))
}

/// The applied versions of a stream, in the order of their application.
pub(crate) async fn applied(stack: &Stack, stream_id: &str) -> Option<String> {
    sqlx::query_scalar("SELECT versions FROM tally WHERE stream_id = ?")
        .bind(stream_id)
        .fetch_optional(&mut stack.mysql().await)
        .await
        .unwrap()
}

pub(crate) async fn wait_for(stack: &Stack, stream_id: &str, versions: &str) {
    eventually(&format!("{stream_id} is applied up to {versions}"), async || {
        (applied(stack, stream_id).await.as_deref() == Some(versions)).then_some(())
    })
    .await;
}

/// An event as the event store holds it.
pub(crate) async fn stored(stack: &Stack, stream_id: &str, version: i64) -> Event {
    let version = StreamVersion::new(version).unwrap();
    let stream_id = StreamId::new(stream_id).unwrap();
    let wanted = StreamRange { stream_id, from: version, to: version };
    stack.session().await.read_streams(&[wanted], 1).await.unwrap().remove(0).into()
}

pub(crate) async fn publisher(stack: &Stack) -> (broker::Connection, Publisher) {
    let connection = stack.broker().await;
    let publisher = connection.publisher("events", Duration::from_secs(10)).await.unwrap();
    (connection, publisher)
}

/// Publishes the message of an event, as the relay does.
pub(crate) async fn publish(stack: &Stack, stream_id: &str, versions: &[i64]) {
    let (_connection, mut publisher) = publisher(stack).await;
    for version in versions {
        let event = stored(stack, stream_id, *version).await;
        let message = Message::encode(event, "order.Tested".to_owned());
        assert_eq!(publisher.publish(&[message]).await.unwrap(), [Outcome::Confirmed]);
    }
}

/// Appends an event and marks it as published, as if its message were lost.
pub(crate) async fn append_lost(stack: &Stack, stream_id: &str) {
    let mut connection = stack.postgres().await;
    let mut transaction = connection.begin().await.unwrap();
    let events = json!([tested(&json!(1))]);
    harness::append(&mut transaction, stream_id, None, &events).await.unwrap();
    sqlx::query("UPDATE outbox SET processed_at = now() WHERE stream_id = $1")
        .bind(stream_id)
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
}

/// Waits until the dead-letter queue holds this number of messages. Returns their reasons.
pub(crate) async fn dead_letters(stack: &Stack, count: usize) -> Vec<String> {
    let channel = stack.amqp().await.create_channel().await.unwrap();
    let mut reasons = Vec::new();
    eventually(&format!("{count} dead letters"), async || {
        while let Some(message) =
            channel.basic_get(DEAD.into(), BasicGetOptions { no_ack: true }).await.unwrap()
        {
            let headers = message.properties.headers().clone().unwrap();
            let reason = headers.inner()["dead_letter_reason"].as_long_string().unwrap();
            reasons.push(String::from_utf8(reason.as_bytes().to_vec()).unwrap());
        }
        (reasons.len() >= count).then_some(())
    })
    .await;
    reasons
}

/// E9: repeated and old messages change nothing, even after newer ones. MySQL's row counts cannot
/// distinguish an insert from a repetition, so versions decide.
#[tokio::test(flavor = "multi_thread")]
async fn e9_repeated_and_old_messages_have_no_effect() {
    with_projector(async |stack, projector| {
        stack.append("order-1", &[tested(&json!(1)), tested(&json!(2)), tested(&json!(3))]).await;
        publish(stack, "order-1", &[1, 1, 2, 1, 3, 2, 3, 1]).await;
        wait_for(stack, "order-1", "1,2,3").await;
        eventually("the repetitions are counted", async || {
            let series = "projector_events_total{projection=\"tally\",outcome=\"duplicate\"}";
            (projector.metric(series).await > 4.0).then_some(())
        })
        .await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1,2,3"));
        let total: i32 = sqlx::query_scalar("SELECT applied FROM tally_total")
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(total, 3);
    })
    .await;
}

/// A message that is not an event becomes a dead letter with its reason, and delays no other message.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_an_event_is_dead_lettered_with_its_reason() {
    with_projector(async |stack, projector| {
        stack.append("order-1", &[tested(&json!(1))]).await;
        let good = Message::encode(stored(stack, "order-1", 1).await, "order.Tested".to_owned());
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            message
        };
        let foreign = Message {
            routing_key: "order.Tested".to_owned(),
            body: b"{\"valid\": \"json\"}".to_vec(),
            ..Message::default()
        };
        let garbage = changed(&|message| message.body = vec![0xff, 0x00, 0xfe]);
        let truncated = changed(&|message| message.body.truncate(3));
        let unversioned = changed(&|message| drop(message.headers.remove("stream_version")));
        let unplaced = changed(&|message| drop(message.headers.remove("position")));
        let wrong_type = changed(&|message| {
            let value = HeaderValue::Text("1".to_owned());
            message.headers.insert("stream_version".into(), value);
        });
        let (_connection, mut publisher) = publisher(stack).await;
        let batch = [garbage, foreign, truncated, unversioned, unplaced, wrong_type, good];
        publisher.publish(&batch).await.unwrap();
        // The valid message among them is applied.
        wait_for(stack, "order-1", "1").await;
        let reasons = dead_letters(stack, 6).await;
        for (reason, expected) in reasons.iter().zip([
            "the body is not UTF-8",
            "message_id is missing",
            "the body is not valid JSON at line 1",
            "the event is not in the event store",
            "append it with append_event()",
            "header stream_version is not an integer",
        ]) {
            assert!(reason.contains(expected), "{reason:?} should contain {expected:?}");
        }
        let series = "projector_events_total{projection=\"tally\",outcome=\"dead_lettered\"}";
        assert!((projector.metric(series).await - 6.0).abs() < 0.5);
    })
    .await;
}

/// A stream is parked when another event arrives with an applied version. This happens with two event
/// stores, or with one that lost commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_parks_its_stream_and_names_both_events() {
    with_projector(async |stack, projector| {
        stack.append("order-1", &[tested(&json!(1)), tested(&json!(2))]).await;
        publish(stack, "order-1", &[1, 2]).await;
        wait_for(stack, "order-1", "1,2").await;

        let real = stored(stack, "order-1", 2).await;
        let mut other = real.clone();
        other.event_id = EventId::new(Uuid::new_v4()).unwrap();
        let other_id = other.event_id.to_string();
        let (_connection, mut publisher) = publisher(stack).await;
        let message = Message::encode(other, "order.Tested".to_owned());
        publisher.publish(&[message]).await.unwrap();
        eventually("the stream is parked", async || {
            let series = "projector_conflicting_streams{projection=\"tally\"}";
            (projector.metric(series).await > 0.5).then_some(())
        })
        .await;
        let command = |arguments: &[&str]| {
            stack.projector(TALLY).arg("parked").args(arguments.iter().copied())
        };
        let shown = command(&["show", "tally", "order-1", "--json"]).succeed().await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["kind"], "conflict");
        assert_eq!(shown["event_id"], other_id);
        assert_eq!(shown["applied_event_id"], real.event_id.to_string());

        // The event store holds the applied event, so an operator may skip the other one.
        stack.append("order-1", &[tested(&json!(3))]).await;
        publish(stack, "order-1", &[3]).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1,2"), "the stream waits");
        command(&["retry", "tally", "order-1"]).succeed().await;
        wait_for(stack, "order-1", "1,2,3").await;
    })
    .await;
}

/// An event that cannot be applied stops only its stream. The stream continues once the cause is
/// fixed.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_holds_only_its_stream() {
    with_projector(async |stack, projector| {
        let _relay = stack.relay().start();
        // The number exceeds DECIMAL(20, 2).
        let poison = event("Tested", &json!({ "n": 1e30 }));
        stack.append("order-1", &[tested(&json!(1)), poison, tested(&json!(3))]).await;
        for number in 2..40 {
            stack.append(&format!("order-{number}"), &[tested(&json!(1))]).await;
        }
        for number in 2..40 {
            wait_for(stack, &format!("order-{number}"), "1").await;
        }
        wait_for(stack, "order-1", "1").await;
        let parked = |arguments: &[&str]| {
            stack.projector(TALLY).arg("parked").args(arguments.iter().copied())
        };
        let list = eventually("the stream is listed", async || {
            let list = parked(&["list", "tally"]).succeed().await;
            list.contains("order-1  version 2").then_some(list)
        })
        .await;
        assert!(list.contains("Tested.sql:1:1: MySQL refused the statement"), "{list}");
        let output = parked(&["retry", "tally", "--all"]).fail(1).await;
        assert!(output.contains("1 stream stays parked"), "{output}");

        let widen = "ALTER TABLE tally MODIFY total DECIMAL(40, 2) NOT NULL";
        stack.mysql().await.execute(widen).await.unwrap();
        parked(&["retry", "tally", "--error", "MySQL refused"]).succeed().await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1,2,3"));
        projector.ready().await;
        stack.append("order-1", &[tested(&json!(4))]).await;
        wait_for(stack, "order-1", "1,2,3,4").await;
    })
    .await;
}

/// An event that its handler cannot read holds only its stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_parameter_and_an_unknown_schema_hold_only_their_streams() {
    with_projector(async |stack, projector| {
        let _relay = stack.relay().start();
        stack.append("order-1", &[event("Tested", &json!({}))]).await;
        let mut newer = tested(&json!(1));
        newer["schema_version"] = json!(2);
        stack.append("order-2", &[newer]).await;
        stack.append("order-3", &[event("Unhandled", &json!({})), tested(&json!(1))]).await;
        wait_for(stack, "order-3", "2").await;
        eventually("both reasons are logged", async || {
            let log = projector.log();
            let missing = "Tested.sql:1:1: the event has no :data.n; write :data.n? to use NULL";
            let newer = "schema version 2 of Tested has no handler";
            (log.contains(missing) && log.contains(newer)).then_some(())
        })
        .await;
        assert_eq!(applied(stack, "order-1").await, None);
        assert_eq!(applied(stack, "order-2").await, None);
    })
    .await;
}

/// A new projection replays the history before it is ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_projection_begins_with_the_history() {
    Stack::run(async |stack| {
        for number in 0..10 {
            let events = || (1..=7).map(|n| tested(&json!(n))).collect::<Vec<_>>();
            stack.append(&format!("order-{number}"), &events()).await;
            stack.append(&format!("other-{number}"), &events()).await;
        }
        let mut postgres = stack.postgres().await;
        postgres.execute("UPDATE outbox SET processed_at = now()").await.unwrap();
        stack.projector(TALLY).arg("migrate").succeed().await;
        let size = "PROJECTOR__PROJECTOR__BATCH_SIZE";
        let projector = stack.projector(TALLY).env(size, "10").start_ready().await;
        for number in 0..10 {
            let versions = applied(stack, &format!("order-{number}")).await;
            assert_eq!(
                versions.as_deref(),
                Some("1,2,3,4,5,6,7"),
                "the daemon was ready before the replay ended"
            );
        }
        assert_eq!(applied(stack, "other-1").await, None);
        let series = "projector_healed_events_total{projection=\"tally\",by=\"replay\"}";
        assert!((projector.metric(series).await - 70.0).abs() < 0.5);
        let _relay = stack.relay().start();
        stack.append("order-0", &[tested(&json!(8))]).await;
        wait_for(stack, "order-0", "1,2,3,4,5,6,7,8").await;
    })
    .await;
}

/// Each server in turn becomes unreachable under load, and returns.
#[tokio::test(flavor = "multi_thread")]
async fn the_projector_recovers_from_each_outage() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let (mysql, mysql_url) = Proxy::before(&stack.mysql_url).await;
        let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let (postgres, postgres_url) = Proxy::before(&stack.postgres_url).await;
        let projector = stack
            .projector(TALLY)
            .env("READ_MODEL_URL", &mysql_url)
            .env("AMQP_URL", &amqp_url)
            .env("EVENT_STORE_URL", &postgres_url)
            // Gaps are healed as soon as they show.
            .env("PROJECTOR__PROJECTOR__SWEEP_GRACE", "1h")
            .start_ready()
            .await;
        let mut versions = String::new();
        let (mut number, mut lost) = (0, 0);
        for proxy in [&mysql, &rabbitmq, &postgres] {
            for outage in [Mode::Reset, Mode::BlackHole, Mode::Pass] {
                proxy.set(outage);
                if outage == Mode::Pass {
                    proxy.cut();
                }
                for _ in 0..5 {
                    number += 1;
                    stack.append("order-1", &[tested(&json!(number))]).await;
                    let comma = if versions.is_empty() { "" } else { "," };
                    versions = format!("{versions}{comma}{number}");
                }
                // One message is lost, so the next one of its stream shows a gap.
                lost += 2;
                append_lost(stack, "order-2").await;
                stack.append("order-2", &[tested(&json!(lost))]).await;
                sleep(Duration::from_millis(700)).await;
                proxy.set(Mode::Pass);
                wait_for(stack, "order-1", &versions).await;
                let healed: Vec<_> = (1..=lost).map(|version| version.to_string()).collect();
                wait_for(stack, "order-2", &healed.join(",")).await;
            }
        }
        projector.ready().await;
    })
    .await;
}

/// SIGTERM ends the projector in time. Method: with idle, silent and unreachable servers.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_projector_in_time_in_every_state() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let (mysql, mysql_url) = Proxy::before(&stack.mysql_url).await;
        let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let through =
            stack.projector(TALLY).env("READ_MODEL_URL", &mysql_url).env("AMQP_URL", &amqp_url);
        let limit = Duration::from_secs(10);
        for (mysql_mode, rabbitmq_mode) in [
            (Mode::Pass, Mode::Pass),
            (Mode::BlackHole, Mode::Pass),
            (Mode::Pass, Mode::BlackHole),
            (Mode::Reset, Mode::Reset),
        ] {
            mysql.set(Mode::Pass);
            rabbitmq.set(Mode::Pass);
            let mut projector = through.start_ready().await;
            mysql.set(mysql_mode);
            rabbitmq.set(rabbitmq_mode);
            stack.append("order-1", &[tested(&json!(1))]).await;
            sleep(Duration::from_millis(300)).await;
            let (status, after) = projector.terminate().await;
            assert_eq!(status.code(), Some(0), "{mysql_mode:?} {rabbitmq_mode:?}");
            assert!(after < limit, "{after:?} with {mysql_mode:?} {rabbitmq_mode:?}");
        }
        let _projector = stack.projector(TALLY).start();
        wait_for(stack, "order-1", "1,2,3,4").await;
    })
    .await;
}
