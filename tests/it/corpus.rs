//! Bad input at every interface: its sender gets the documented answer, and all other input is
//! processed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use harness::{Daemon, Stack, eventually, root};
use lapin::message::Delivery;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::projector::TALLY;

/// The number of cases that run at the same time where each case is a process.
const AT_ONCE: usize = 4;

/// The outcome of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// The input takes effect.
    Apply,
    /// The input took effect before, and has none now.
    Duplicate,
    /// The input has no effect by design.
    Pass,
    /// The stream is parked until an operator decides.
    Park,
    /// The message goes to the dead-letter queue.
    DeadLetter,
    /// The event is published.
    Publish,
    /// The input is refused.
    Refuse,
}

impl Verdict {
    /// Whether the outcome comes with a reason.
    fn has_reason(self) -> bool {
        matches!(self, Self::Park | Self::DeadLetter | Self::Refuse)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    case: Vec<toml::Table>,
}

struct Case<I> {
    name: String,
    verdict: Verdict,
    /// A part of the reason that the sender gets.
    reason: String,
    input: I,
}

impl<I: DeserializeOwned> Case<I> {
    /// Panics when a case lacks a reason that its verdict needs, or has one that it does not.
    fn read(mut table: toml::Table) -> Self {
        let name: String = table.remove("name").expect("a name").try_into().unwrap();
        let verdict: Verdict = table.remove("verdict").expect(&name).try_into().unwrap();
        let reason = table.remove("reason").map(|it| it.try_into().unwrap());
        assert_eq!(reason.is_some(), verdict.has_reason(), "{name}: the reason");
        let input = table.try_into().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, verdict, reason: reason.unwrap_or_default(), input }
    }
}

/// The cases of an interface.
fn corpus<I: DeserializeOwned>(interface: &str) -> Vec<Case<I>> {
    let file = root().join("tests/corpus").join(format!("{interface}.toml"));
    let text = fs::read_to_string(file).unwrap();
    let cases = toml::from_str::<Corpus>(&text).unwrap().case;
    let cases: Vec<Case<I>> = cases.into_iter().map(Case::read).collect();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "{interface}: two cases have the same name");
    cases
}

/// Replaces `{{x*300}}` with 300 times x.
fn written_out(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, behind) = after.split_once("}}").unwrap();
        let (what, times) = inside.rsplit_once('*').unwrap();
        out += before;
        out += &what.repeat(times.parse().unwrap());
        rest = behind;
    }
    out + rest
}

/// The cases whose outcome was not the expected one.
#[derive(Default)]
struct Surprises(Vec<String>);

impl Surprises {
    fn compare<I>(&mut self, case: &Case<I>, verdict: Verdict, message: &str) {
        if verdict != case.verdict || !message.contains(&case.reason) {
            let message: String = message.chars().take(400).collect();
            let (name, expected, reason) = (&case.name, case.verdict, &case.reason);
            self.0.push(format!("{name}: {verdict:?} {message:?}, not {expected:?} {reason:?}"));
        }
    }

    fn assert_none(&self) {
        assert!(self.0.is_empty(), "{} surprises:\n{}", self.0.len(), self.0.join("\n"));
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Append {
    stream: String,
    expected: Option<i64>,
    events: String,
}

/// Every call of `append_to_stream` in the corpus has its verdict.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_append() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let mut connection = stack.postgres().await;
        let first = "00000000-0000-4000-8000-000000000001";
        let events = json!([{ "event_id": first, "type": "A", "data": {} }]).to_string();
        append(&mut connection, "order-1", None, &events).await.unwrap();
        for case in corpus::<Append>("append") {
            let (stream, events) =
                (written_out(&case.input.stream), written_out(&case.input.events));
            let mut transaction = connection.begin().await.unwrap();
            let appended = append(&mut transaction, &stream, case.input.expected, &events).await;
            let (verdict, message) = match appended {
                Err(error) => (Verdict::Refuse, refusal(&error)),
                Ok(()) => match count(&mut transaction).await {
                    1 => (Verdict::Duplicate, String::new()),
                    2 => (Verdict::Apply, String::new()),
                    count => panic!("{}: {count} events", case.name),
                },
            };
            surprises.compare(&case, verdict, &message);
            transaction.rollback().await.unwrap();
        }
        assert_eq!(count(&mut connection).await, 1);
        surprises.assert_none();
    })
    .await;
}

async fn append(
    connection: &mut PgConnection,
    stream: &str,
    expected: Option<i64>,
    events: &str,
) -> Result<(), sqlx::Error> {
    let append = sqlx::query("SELECT append_to_stream($1, $2, $3::jsonb)");
    append.bind(stream).bind(expected).bind(events).execute(connection).await.map(drop)
}

/// The SQLSTATE and the message of a refusal.
fn refusal(error: &sqlx::Error) -> String {
    let error = error.as_database_error().expect("PostgreSQL refuses the input");
    format!("{} {}", error.code().unwrap_or_default(), error.message())
}

async fn count(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(connection).await.unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    columns: String,
    values: String,
}

/// Every row in the corpus is refused at its insert, parked or published unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_outbox() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let channel = everything(stack).await;
        let mut seen = BTreeMap::new();
        let mut connection = stack.postgres().await;
        let mut taken = Vec::new();
        for case in corpus::<Row>("outbox") {
            let id = Uuid::new_v4();
            let values = written_out(&case.input.values).replace("$id", &format!("'{id}'"));
            let columns = written_out(&case.input.columns);
            let insert = format!("INSERT INTO outbox ({columns}) VALUES ({values})");
            let inserted = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut connection).await;
            match inserted {
                Ok(_) => taken.push((case, id)),
                Err(error) => surprises.compare(&case, Verdict::Refuse, &refusal(&error)),
            }
        }
        let relay = stack.relay().env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "100000");
        let _relay = relay.env("OUTBOX_RELAY__RELAY__MAX_ATTEMPTS", "1").start_ready().await;
        for (case, id) in taken {
            let became = eventually(&case.name, async || {
                let row: (bool, Option<String>) = sqlx::query_as(
                    "SELECT o.processed_at IS NOT NULL,
                            (SELECT last_error FROM outbox_holds WHERE stream_key = $1::text)
                     FROM outbox o WHERE o.event_id = $1::uuid",
                )
                .bind(id.to_string())
                .fetch_one(&mut connection)
                .await
                .unwrap();
                match row {
                    (true, _) => Some((Verdict::Publish, String::new())),
                    (_, Some(error)) => Some((Verdict::Park, error)),
                    (false, None) => None,
                }
            });
            let (verdict, message) = became.await;
            surprises.compare(&case, verdict, &message);
            if verdict == Verdict::Publish {
                let (key, body) = eventually(&case.name, async || {
                    let get = channel.basic_get("all".into(), BasicGetOptions { no_ack: true });
                    if let Some(message) = get.await.unwrap() {
                        let id = message.properties.message_id().clone().unwrap().to_string();
                        let key = message.routing_key.to_string();
                        let before = seen.insert(id, (key, message.data.clone()));
                        assert_eq!(before, None, "{}: published twice", case.name);
                    }
                    seen.get(&id.to_string()).cloned()
                })
                .await;
                let row: (String, String) = sqlx::query_as(
                    "SELECT routing_key, payload::text FROM outbox WHERE event_id = $1",
                )
                .bind(id)
                .fetch_one(&mut connection)
                .await
                .unwrap();
                let body = String::from_utf8(body).unwrap();
                assert_eq!((key, body), row, "{}: the published message", case.name);
            }
        }
        surprises.assert_none();
    })
    .await;
}

/// Declares a queue that receives all messages. Returns a channel to get them.
async fn everything(stack: &Stack) -> Channel {
    let channel = stack.amqp().await.create_channel().await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let none = FieldTable::default;
    channel.exchange_declare("events".into(), ExchangeKind::Topic, durable, none()).await.unwrap();
    let options = QueueDeclareOptions::durable();
    channel.queue_declare("all".into(), options, none()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind("all".into(), "events".into(), "#".into(), bind, none()).await.unwrap();
    channel
}

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
        let parked = sqlx::query_scalar("SELECT reason FROM tally__parked WHERE stream_id = ?");
        let all = sqlx::query_scalar("SELECT CAST(COALESCE(SUM(applied), 0) AS SIGNED) FROM tally");
        let head = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(version), 0) AS SIGNED) FROM tally__streams",
        );
        Self {
            applied: all.fetch_one(&mut mysql).await.unwrap(),
            head: head.fetch_one(&mut mysql).await.unwrap(),
            parked: parked.bind(stream).fetch_optional(&mut mysql).await.unwrap(),
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    file: String,
    text: String,
}

/// `projector check` accepts or refuses every projection in the corpus with the documented reason.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_projection() {
    Stack::run(async |stack| {
        let check = async |(number, case): (usize, Case<Files>)| {
            let folder = stack.folder().join(format!("projections{number}"));
            let bad = folder.join("bad");
            fs::create_dir_all(&bad).unwrap();
            let tables = "CREATE TABLE bad (
                id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY, n INT)";
            fs::write(bad.join("projection.toml"), r#"categories = ["order"]"#).unwrap();
            fs::write(bad.join("tables.sql"), tables).unwrap();
            let handler = "INSERT INTO bad (id, n) VALUES (:stream_id, 1)";
            fs::write(bad.join("Tested.sql"), handler).unwrap();
            fs::write(bad.join(&case.input.file), written_out(&case.input.text)).unwrap();
            let output = stack.projector(&folder).arg("check").output().await;
            let message = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            let verdict = match output.status.code() {
                Some(0) => Verdict::Apply,
                Some(65) => Verdict::Refuse,
                code => panic!("{}: {code:?} {message}", case.name),
            };
            (case, verdict, message)
        };
        let cases = corpus::<Files>("projection").into_iter().enumerate();
        let mut checked = stream::iter(cases).map(check).buffer_unordered(AT_ONCE);
        let mut surprises = Surprises::default();
        while let Some((case, verdict, message)) = checked.next().await {
            surprises.compare(&case, verdict, &message);
        }
        surprises.assert_none();
    })
    .await;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    daemon: String,
    text: String,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    /// Environment variables to remove.
    #[serde(default)]
    without: Vec<String>,
}

/// `config show` accepts or refuses every configuration in the corpus, without printing a secret.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_configuration() {
    Stack::run_empty(async |stack| {
        let show = async |(number, case): (usize, Case<Settings>)| {
            let file = stack.folder().join(format!("{number}.toml"));
            fs::write(&file, written_out(&case.input.text)).unwrap();
            let program = match case.input.daemon.as_str() {
                "projector" => stack.projector(TALLY),
                _ => stack.relay(),
            };
            let program =
                program.bare(&case.input.without).arg("--config").arg(file.display().to_string());
            let program = program.args(["config", "show"]);
            let variables = case.input.variables.iter();
            let program = variables
                .fold(program, |program, (name, value)| program.env(name, &written_out(value)));
            let output = program.output().await;
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let verdict = match output.status.code() {
                Some(0) => Verdict::Apply,
                Some(64) => Verdict::Refuse,
                code => panic!("{}: {code:?} {message}", case.name),
            };
            let all = message.clone() + &String::from_utf8_lossy(&output.stdout);
            assert!(!all.contains("secret"), "{}: the output contains a secret: {all}", case.name);
            (case, verdict, message)
        };
        let cases = corpus::<Settings>("configuration").into_iter().enumerate();
        let mut shown = stream::iter(cases).map(show).buffer_unordered(AT_ONCE);
        let mut surprises = Surprises::default();
        while let Some((case, verdict, message)) = shown.next().await {
            surprises.compare(&case, verdict, &message);
        }
        surprises.assert_none();
    })
    .await;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    line: String,
    /// The number of events of the case that are imported before the refused one.
    #[serde(default)]
    before: i64,
}

/// The import accepts every line in the corpus, or refuses it and keeps the lines before it.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_import() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let mut connection = stack.postgres().await;
        for (number, case) in corpus::<Line>("import").into_iter().enumerate() {
            let stream = format!("order-{number}");
            let good = |place: u32| {
                json!({ "stream_id": stream, "type": "A", "data": { "place": place },
                        "occurred_at": "2026-01-31T09:30:00Z" })
                .to_string()
            };
            let file = stack.folder().join(format!("{number}.jsonl"));
            let line = written_out(&case.input.line).replace("$stream", &stream);
            let lines = [good(1), good(2), line, good(3)];
            fs::write(&file, lines.join("\n")).unwrap();
            let import = stack.workload().arg("import").arg(file.display().to_string());
            let output = import.output().await;
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let verdict = match output.status.code() {
                Some(0) => Verdict::Apply,
                Some(65) => Verdict::Refuse,
                code => panic!("{}: {code:?} {message}", case.name),
            };
            surprises.compare(&case, verdict, &message);
            let stored: i64 =
                sqlx::query_scalar("SELECT count(*) FROM events WHERE stream_id = $1")
                    .bind(&stream)
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            let expected = match verdict {
                Verdict::Apply if case.input.line.is_empty() => 3,
                Verdict::Apply => 4,
                // The lines before the refused one are kept. The lines after it are not imported.
                _ => 2 + case.input.before,
            };
            if stored != expected {
                surprises.0.push(format!("{}: {stored} events, not {expected}", case.name));
            }
        }
        surprises.assert_none();
    })
    .await;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default)]
    daemon: Server,
    send: String,
}

/// The daemon that gets the request.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Server {
    #[default]
    OutboxRelay,
    Projector,
}

/// The daemons answer every request in the corpus, and still serve requests afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_http() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let relay = stack.relay().start_ready().await;
        stack.projector(TALLY).arg("migrate").succeed().await;
        let projector = stack.projector(TALLY).start_ready().await;
        let addresses = [&relay, &projector].map(address);
        let cases = corpus::<Request>("http");
        let mut asked: Vec<_> = join_all(
            cases
                .iter()
                .map(|case| ask(&addresses[case.input.daemon as usize], case.input.send.as_str())),
        )
        .await;
        for (case, (_, message)) in cases.iter().zip(&asked) {
            let verdict = if message.contains(" 200 ") { Verdict::Apply } else { Verdict::Refuse };
            surprises.compare(case, verdict, message);
        }
        asked.extend(join_all((0..300).map(|_| ask(&addresses[0], "GET /livez HT"))).await);
        for daemon in [relay, projector] {
            assert_eq!(
                daemon.get("/livez").await.unwrap().0,
                200,
                "the daemon still serves requests"
            );
        }
        surprises.assert_none();
    })
    .await;
}

/// The HTTP address of a daemon.
fn address(daemon: &Daemon) -> String {
    let log = daemon.log();
    let started = log.lines().find(|line| line.contains("started")).unwrap();
    let started: Value = serde_json::from_str(started).unwrap();
    started["http"].as_str().unwrap().to_owned()
}

/// Sends a request. Returns the first line of the answer, or the end of the connection.
async fn ask(address: &str, send: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The daemon may answer before it has read everything.
    drop(stream.write_all(written_out(send).as_bytes()).await);
    let mut answer = vec![0; 64];
    let message = match timeout(Duration::from_secs(30), stream.read(&mut answer)).await {
        Ok(Ok(0)) => "closed without an answer".to_owned(),
        Ok(Ok(length)) => String::from_utf8_lossy(&answer[..length]).into_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "neither answered nor closed".to_owned(),
    };
    (stream, message)
}
