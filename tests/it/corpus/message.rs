//! Messages in a projection's queue.

use std::collections::BTreeMap;

use harness::{Daemon, Stack, eventually};
use lapin::message::Delivery;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde::Deserialize;
use uuid::Uuid;

use super::{Surprises, Verdict, corpus, written_out};
use crate::projector::TALLY;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    /// The number of events of the stream that are applied before.
    #[serde(default)]
    before: i64,
    /// The version of the earlier event that is sent again.
    again: Option<i64>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    headers: BTreeMap<String, toml::Value>,
    #[serde(default)]
    removed: Vec<String>,
    body: Option<String>,
    bytes: Option<Vec<u8>>,
}

/// Every message in the corpus has its verdict, and delays no other message.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_message() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        stack.projector(TALLY).arg("migrate").succeed().await;
        let quiet = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__STORM_STREAMS", "1000");
        let quiet = quiet.env("PROJECTOR__PROJECTOR__STORM_PERCENT", "100");
        let mut projector = quiet.start_ready().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        for (number, case) in corpus::<Sent>("message").into_iter().enumerate() {
            let stream = format!("order-{number}");
            let mut ids = vec![Uuid::new_v4()];
            for version in 1..=case.input.before {
                ids.push(Uuid::new_v4());
                send(&channel, &stream, version, *ids.last().unwrap(), &Sent::good()).await;
                eventually("the earlier events are applied", async || {
                    (applied(stack, &stream).await == version).then_some(())
                })
                .await;
            }
            let before = Counts::of(stack, &projector, &stream).await;
            let again = case.input.again.map(|it| (it, ids[usize::try_from(it).unwrap()]));
            let (version, id) = again.unwrap_or((case.input.before + 1, ids[0]));
            let (body, message_id) = send(&channel, &stream, version, id, &case.input).await;
            let (verdict, message) = eventually(&case.name, async || {
                before.difference(&Counts::of(stack, &projector, &stream).await)
            })
            .await;
            let message = if verdict == Verdict::DeadLetter {
                let dead = eventually(&case.name, async || get(&channel, DEAD).await).await;
                assert_eq!(dead.data, body, "{}: the body of the dead letter", case.name);
                let id = dead.properties.message_id().as_ref().map(ToString::to_string);
                assert_eq!(id, message_id, "{}: the id of the dead letter", case.name);
                let headers = dead.properties.headers().clone().unwrap();
                let reason = headers.inner()["dead_letter_reason"].as_long_string().unwrap();
                String::from_utf8_lossy(reason.as_bytes()).into()
            } else {
                message
            };
            surprises.compare(&case, verdict, &message);
        }
        send(&channel, "order-last", 1, Uuid::new_v4(), &Sent::good()).await;
        eventually("a good event is applied", async || {
            (applied(stack, "order-last").await == 1).then_some(())
        })
        .await;
        assert!(!projector.log().contains("DROP TABLE"), "the log contains a payload");
        assert!(projector.terminate().await.0.success());
        for queue in ["projector.tally", DEAD] {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = channel.queue_declare(queue.into(), passive, FieldTable::default());
            let queue = queue.await.unwrap();
            assert_eq!(queue.message_count(), 0, "messages left in {}", queue.name());
        }
        surprises.assert_none();
    })
    .await;
}

const DEAD: &str = "projector.tally.dead";

/// Takes a message from a queue.
async fn get(channel: &Channel, queue: &str) -> Option<Delivery> {
    let get = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
    get.await.unwrap().map(|message| message.delivery)
}

impl Sent {
    fn good() -> Self {
        let (properties, headers) = (BTreeMap::new(), BTreeMap::new());
        let (removed, body, bytes) = (Vec::new(), None, None);
        Self { before: 0, again: None, properties, headers, removed, body, bytes }
    }
}

/// Sends a message. Returns its body and its message id.
async fn send(
    channel: &Channel,
    stream: &str,
    version: i64,
    id: Uuid,
    sent: &Sent,
) -> (Vec<u8>, Option<String>) {
    let time = "2026-01-31T09:30:00.000000Z";
    let mut headers: BTreeMap<String, AMQPValue> = BTreeMap::new();
    let text = |text: &str| AMQPValue::LongString(text.as_bytes().into());
    headers.insert("stream_id".to_owned(), text(stream));
    headers.insert("stream_version".to_owned(), AMQPValue::LongLongInt(version));
    headers.insert("position".to_owned(), AMQPValue::LongLongInt(version));
    headers.insert("schema_version".to_owned(), AMQPValue::LongInt(1));
    headers.insert("occurred_at".to_owned(), text(time));
    headers.insert("recorded_at".to_owned(), text(time));
    for (name, value) in &sent.headers {
        let value = match value {
            toml::Value::String(value) => text(&written_out(value)),
            toml::Value::Integer(number) => AMQPValue::LongLongInt(*number),
            toml::Value::Float(number) => AMQPValue::Double(*number),
            other => panic!("{other} as a header"),
        };
        headers.insert(name.clone(), value);
    }
    let mut properties: BTreeMap<&str, String> = BTreeMap::from([
        ("message_id", id.to_string()),
        ("type", "Tested".to_owned()),
        ("content_type", "application/json".to_owned()),
    ]);
    properties
        .extend(sent.properties.iter().map(|(name, value)| (name.as_str(), written_out(value))));
    for name in &sent.removed {
        headers.remove(name);
        properties.remove(name.as_str());
    }
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    let mut basic = BasicProperties::default().with_delivery_mode(2).with_headers(table);
    let message_id = properties.get("message_id").cloned();
    for (name, value) in properties {
        let value = value.into();
        basic = match name {
            "message_id" => basic.with_message_id(value),
            "type" => basic.with_type(value),
            "content_type" => basic.with_content_type(value),
            _ => basic.with_content_encoding(value),
        };
    }
    let body = match (&sent.bytes, &sent.body) {
        (Some(bytes), _) => bytes.clone(),
        (None, Some(body)) => written_out(body).into_bytes(),
        (None, None) => br#"{"n": 1}"#.to_vec(),
    };
    let options = BasicPublishOptions::default();
    let publish = channel.basic_publish("".into(), "projector.tally".into(), options, &body, basic);
    publish.await.unwrap().await.unwrap();
    (body, message_id)
}

/// The counts from which the verdict on a message follows.
#[derive(Debug)]
struct Counts {
    applied: i64,
    head: i64,
    parked: Option<String>,
    duplicates: f64,
    dead: f64,
}

impl Counts {
    async fn of(stack: &Stack, projector: &Daemon, stream: &str) -> Self {
        let mut mysql = stack.mysql().await;
        let outcome = |outcome| {
            format!("projector_events_total{{projection=\"tally\",outcome=\"{outcome}\"}}")
        };
        // One statement sees one state: an event that is applied between two would seem to have no effect.
        let (applied, head, parked) = sqlx::query_as(
            "SELECT (SELECT CAST(COALESCE(SUM(applied), 0) AS SIGNED) FROM tally),
                    (SELECT CAST(COALESCE(SUM(version), 0) AS SIGNED) FROM tally__streams),
                    (SELECT reason FROM tally__parked WHERE stream_id = ?)",
        )
        .bind(stream)
        .fetch_one(&mut mysql)
        .await
        .unwrap();
        Self {
            applied,
            head,
            parked,
            duplicates: projector.metric(&outcome("duplicate")).await,
            dead: projector.metric(&outcome("dead_lettered")).await,
        }
    }

    fn difference(&self, now: &Self) -> Option<(Verdict, String)> {
        let applied = now.applied - self.applied;
        if applied > 0 {
            assert_eq!((applied, now.head), (1, self.head + 1), "exactly one event is applied");
            return Some((Verdict::Apply, String::new()));
        }
        if let Some(error) = &now.parked {
            return Some((Verdict::Park, error.clone()));
        }
        if now.head > self.head {
            return Some((Verdict::Pass, String::new()));
        }
        if now.duplicates > self.duplicates {
            return Some((Verdict::Duplicate, String::new()));
        }
        (now.dead > self.dead).then(|| (Verdict::DeadLetter, String::new()))
    }
}

async fn applied(stack: &Stack, stream: &str) -> i64 {
    let applied =
        sqlx::query_scalar("SELECT CAST(applied AS SIGNED) FROM tally WHERE stream_id = ?");
    applied.bind(stream).fetch_optional(&mut stack.mysql().await).await.unwrap().unwrap_or(0)
}
