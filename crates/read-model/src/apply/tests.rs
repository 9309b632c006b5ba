//! Compares sets with the same events run one by one, on a real MySQL.

mod statements;
mod values;

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::Path;

use chrono::{Duration, TimeZone, Utc};
use domain_events::{EventId, Json, Position, StreamId, StreamVersion};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError, TestRunner};
use secrecy::SecretString;
use serde_json::{Value as JsonValue, json};
use sqlx::Executor;
use tokio::runtime::Runtime;
use uuid::Uuid;

use self::statements::{PAIRS, STATEMENTS};
use super::*;
use crate::Options;
use crate::rust_projection::Registry;

const TABLES: &str = "
    CREATE TABLE items (
        id    VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
        n     INT NOT NULL DEFAULT 0,
        total DECIMAL(12, 2) NOT NULL DEFAULT 0,
        note  VARCHAR(12) NULL,
        at    DATETIME(6) NULL,
        day   DATE NULL,
        doc   JSON NULL
    );
    CREATE TABLE loose (
        id    VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_ai_ci PRIMARY KEY,
        n     INT NOT NULL DEFAULT 0,
        at    DATETIME(3) NULL
    );
    CREATE TABLE padded (
        id    CHAR(12) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY,
        n     SMALLINT UNSIGNED NOT NULL DEFAULT 100,
        total DECIMAL(6, 1) NULL
    );
    CREATE TABLE daily (
        day      DATE NOT NULL,
        currency CHAR(3) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        n        INT NOT NULL,
        total    DECIMAL(30, 4) NOT NULL,
        CHECK (total > -1000),
        PRIMARY KEY (day, currency)
    );
    CREATE TABLE log (
        event_id BINARY(16) PRIMARY KEY,
        stream   VARCHAR(255) NOT NULL,
        version  BIGINT NOT NULL,
        amount   DOUBLE NULL,
        UNIQUE (stream, version)
    );
    CREATE TABLE strange (
        id     VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
        doc    JSON NULL,
        at     DATETIME NULL,
        at3    DATETIME(3) NULL,
        stamp  TIMESTAMP(3) NULL,
        day    DATE NULL,
        span   TIME NULL,
        chosen ENUM('a', 'b', '1') NULL,
        code   CHAR(4) NULL,
        word   VARCHAR(6) NULL,
        n      INT NULL,
        total  DECIMAL(8, 2) NULL
    );";

const TABLE_NAMES: [&str; 6] = ["items", "loose", "padded", "daily", "log", "strange"];

const TYPES: [&str; 4] = ["A", "B", "C", "D"];

fn amounts() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (-500_i64..5_000).prop_map(|n| format!("{}{}.{:02}", if n < 0 { "-" } else { "" }, n.abs() / 100, n.abs() % 100)),
        2 => (0_i64..50).prop_map(|n| n.to_string()),
        1 => (0_i64..50).prop_map(|n| format!("\"{n}.10\"")),
        1 => Just("0.005".to_owned()),
        1 => Just("-0.015".to_owned()),
        1 => Just("1.10000".to_owned()),
        1 => Just("null".to_owned()),
        1 => Just("9007199254740993.0001".to_owned()),
        1 => Just("99999999.99".to_owned()),
        1 => Just("true".to_owned()),
        1 => Just("\"abc\"".to_owned()),
    ]
}

fn keys() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "a", "A", "a ", "á", "b", "b", "b", "ß", "ss", "🙂", "order-1", "EUR",
    ])
}

prop_compose! {
    fn data()(
        key in keys(), amount in amounts(),
        number in prop_oneof![6 => (-3_i64..9).prop_map(|n| n.to_string()), 1 => Just("null".to_owned()),
                              1 => Just("70000".to_owned()), 1 => Just("1.5".to_owned())],
        flag in any::<bool>(),
        list in prop_oneof![Just("[{\"n\": 1}, {\"n\": 5}]"), Just("[{\"n\": 9}, {}]"), Just("[]"), Just("[{\"n\": 2}]")],
        text in prop_oneof![Just(json!("x")), Just(json!("X")), Just(json!("b")), Just(json!("y' \\ \"")), Just(json!("longer than twelve")),
                            Just(JsonValue::Null), Just(json!("twelve chars  "))],
        day in prop_oneof![Just(json!("2026-01-31")), Just(json!("2026-02-30")), Just(JsonValue::Null),
                           Just(json!("2026-2-1")), Just(json!("2026-02-01"))],
        time in prop_oneof![Just(json!("2026-01-31 09:30:00")), Just(json!("2026-01-31T09:30:00.000")), Just(json!("soon"))],
        any in proptest::sample::select(&ANYTHING[..]),
        span in proptest::sample::select(&["\"12:00:00\"", "\"12:00:00.5\"", "\"-800:00:00.0\"", "\"1234\"", "7"][..]),
        doc in prop_oneof![Just("{\"a\": [1, 19.90]}"), Just("[]"), Just("null"), Just("7")],
    ) -> String {
        format!(
            "{{\"key\": {}, \"amount\": {amount}, \"number\": {number}, \"text\": {text}, \"day\": {day}, \
             \"time\": {time}, \"doc\": {doc}, \"any\": {any}, \"span\": {span}, \"flag\": {flag}, \"list\": {list}}}",
            json!(key)
        )
    }
}

/// Values for columns of any type.
const ANYTHING: [&str; 30] = [
    "null",
    "true",
    "1",
    "0",
    "-7",
    "1.5",
    "1.50",
    "19.125",
    "12345678901234567890123",
    "{\"a\": 1.10}",
    "[]",
    "\"vip\"",
    "\"a\"",
    "\"A\"",
    "\"0\"",
    "\"1\"",
    "\"1.50\"",
    "\" 1\"",
    "\"1e2\"",
    "\"true\"",
    "\"null\"",
    "\"{}\"",
    "\"ab \"",
    "\"abcdef  \"",
    "\"2026-01-31T12:00:00Z\"",
    "\"2026-01-31T12:00:00.250Z\"",
    "\"2026-01-31T00:00:00.0000+0000\"",
    "\"2026-01-31T23:59:59.9999+00:00\"",
    "\"2026-01-31\"",
    "\"10:11:12\"",
];

/// Whether values are strict, the statements of each event type, and the stream, type and payload of each
/// event.
type Program = (bool, Vec<Vec<usize>>, Vec<(u8, usize, String)>);

fn programs() -> impl Strategy<Value = Program> {
    let all = STATEMENTS.len() + PAIRS.len();
    let handlers = proptest::collection::vec(proptest::collection::vec(0..all, 1..3), TYPES.len());
    let events = proptest::collection::vec((0_u8..7, 0..TYPES.len(), data()), 1..30);
    (any::<bool>(), handlers, events)
}

fn write(folder: &Path, strict: bool, handlers: &[Vec<usize>]) {
    let sql = |statements: &Vec<usize>| {
        let all: Vec<&str> = STATEMENTS.iter().chain(PAIRS).copied().collect();
        let sql: Vec<_> = statements.iter().map(|index| all[*index]).collect();
        sql.join(";\n")
    };
    let handlers: Vec<String> = handlers.iter().map(sql).collect();
    let handlers = TYPES.into_iter().zip(handlers.iter().map(String::as_str));
    write_files(folder, strict, TABLES, handlers);
}

fn write_files<'h>(
    folder: &Path,
    strict: bool,
    tables: &str,
    handlers: impl IntoIterator<Item = (&'h str, &'h str)>,
) {
    let directory = folder.join("lab");
    fs::create_dir_all(&directory).unwrap();
    let toml = format!("categories = [\"order\"]\nstrict = {strict}\n");
    fs::write(directory.join("projection.toml"), toml).unwrap();
    fs::write(directory.join("tables.sql"), tables).unwrap();
    for (name, sql) in handlers {
        fs::write(directory.join(format!("{name}.sql")), sql).unwrap();
    }
}

fn events(raw: &[(u8, usize, String)]) -> Vec<StoredEvent> {
    let mut versions: HashMap<u8, i64> = HashMap::new();
    let start = Utc.with_ymd_and_hms(2026, 1, 31, 9, 30, 0).unwrap();
    raw.iter()
        .zip(0_u32..)
        .map(|((stream, kind, data), index)| {
            let version = versions.entry(*stream).or_default();
            *version += 1;
            let occurred_at = start + Duration::microseconds(i64::from(index) * 7_000_001 * 3_600);
            StoredEvent {
                event_id: EventId::new(Uuid::from_u128(u128::from(index) + 1)).unwrap(),
                event_type: EventType::new(TYPES[*kind]).unwrap(),
                schema_version: SchemaVersion::FIRST,
                stream_id: StreamId::new(format!("order-{stream}")).unwrap(),
                version: StreamVersion::new(*version).unwrap(),
                position: Position::new(i64::from(index) + 1).unwrap(),
                data: Json::parse(data.as_str()).unwrap(),
                metadata: Json::empty_object(),
                occurred_at,
                recorded_at: occurred_at,
            }
        })
        .collect()
}

/// A database for one test.
struct Lab {
    session: Session,
    name: String,
    migrated: bool,
}

impl Lab {
    async fn create() -> Self {
        let url = env::var("READ_MODEL_URL").expect("READ_MODEL_URL: run `cargo xtask test`");
        let name = format!("lab_{}", Uuid::new_v4().simple());
        let mut session = Session::connect(&options(&url)).await.unwrap();
        session.run(format!("CREATE DATABASE {name}")).await.unwrap();
        session.close().await;
        let own = url.rsplit_once('/').map(|(server, _)| format!("{server}/{name}")).unwrap();
        let session = Session::connect(&options(&own)).await.unwrap();
        Self { session, name, migrated: false }
    }

    async fn clear(&mut self, model: &ReadModel) {
        let own = ["lab__streams", "lab__parked"];
        if !self.migrated {
            self.session.migrate().await.unwrap();
            self.session.migrate_projection(&model.projection, &model.ledger).await.unwrap();
            self.migrated = true;
        }
        self.session.set_definition(&model.projection).await.unwrap();
        let tables = model.projection.tables.iter().map(|table| &*table.name);
        for table in tables.chain(own) {
            self.session.run(format!("DELETE FROM {table}")).await.unwrap();
        }
    }

    /// Applies the events in batches to empty tables.
    async fn apply(&mut self, model: &ReadModel, events: &[StoredEvent], batch: usize) {
        self.clear(model).await;
        model.prepare(&mut self.session).await.unwrap();
        for batch in events.chunks(batch) {
            let batch: Vec<&StoredEvent> = batch.iter().collect();
            apply(&mut self.session, model, &batch, Breaker::NONE).await.unwrap();
        }
    }

    /// Applies the events in batches. Returns the tables and the parked streams as text.
    async fn outcome(
        &mut self,
        model: &ReadModel,
        events: &[StoredEvent],
        batch: usize,
    ) -> Vec<String> {
        self.apply(model, events, batch).await;
        let mut tables = Vec::new();
        for table in TABLE_NAMES.iter().chain(&["lab__streams"]) {
            tables
                .push(format!("{table}\n{}", self.session.first_rows(table, 1_000).await.unwrap()));
        }
        let parked = self.session.parked(&model.ledger).await.unwrap();
        tables.extend(
            parked.iter().map(|it| format!("{} {} {}", it.stream_id, it.version, it.reason)),
        );
        tables
    }

    async fn drop(mut self) {
        self.session.run(format!("DROP DATABASE {}", self.name)).await.unwrap();
        self.session.close().await;
    }
}

fn options(url: &str) -> Options {
    Options::parse(&SecretString::from(url)).unwrap()
}

fn model(folder: &Path, one_by_one: bool) -> ReadModel {
    let definition = load(folder, &[], &Registry::default()).unwrap().remove(0);
    let mut model = ReadModel::new(definition);
    model.one_by_one = one_by_one;
    model
}

/// For random handlers and events, sets result in the same rows, bookkeeping and parked streams as the same
/// events one by one. The programs are the same in each run unless `PROPTEST_CASES` asks for a number of new ones.
#[test]
fn sets_give_what_their_events_give_one_by_one() {
    let runtime = Runtime::new().unwrap();
    let lab = std::cell::RefCell::new(runtime.block_on(Lab::create()));
    let sets = std::cell::Cell::new(0);
    let more = env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let rng_seed = if more.is_some() { RngSeed::Random } else { RngSeed::Fixed(1) };
    let config = ProptestConfig {
        cases: more.unwrap_or(60),
        rng_seed,
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&programs(), |(strict, handlers, raw)| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), strict, &handlers);
        let events = events(&raw);
        let mut lab = lab.borrow_mut();
        let (as_sets, one_by_one) = (model(folder.path(), false), model(folder.path(), true));
        let got = runtime.block_on(lab.outcome(&as_sets, &events, 25));
        let wanted = runtime.block_on(lab.outcome(&one_by_one, &events, 25));
        let forms = as_sets.forms();
        let handlers = as_sets.projection.handlers();
        sets.set(
            sets.get()
                + handlers.filter(|(_, handler)| forms.one_by_one(handler).is_none()).count(),
        );
        if got == wanted {
            return Ok(());
        }
        let differs = |(got, wanted): &(&String, &String)| got != wanted;
        let tables: Vec<_> = got.iter().zip(&wanted).filter(differs).collect();
        let [got, wanted] = [&got, &wanted].map(|all| all[TABLE_NAMES.len() + 1..].to_vec());
        Err(TestCaseError::fail(format!(
            "{tables:#?}\nparked as sets: {got:#?}\nparked one by one: {wanted:#?}"
        )))
    });
    runtime.block_on(lab.into_inner().drop());
    result.unwrap();
    assert!(sets.get() > 100, "too few handlers ran as sets: {}", sets.get());
}

/// Of the statements above, those that run one by one, with the line, the column and the reason; `check`
/// reports the same. MySQL accepts the sets of all others.
#[test]
fn only_these_statements_run_one_by_one() {
    let runtime = Runtime::new().unwrap();
    let mut lab = runtime.block_on(Lab::create());
    let mut found = Vec::new();
    for index in 0..STATEMENTS.len() + PAIRS.len() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), true, &[vec![index]]);
        let model = model(folder.path(), false);
        runtime.block_on(async {
            lab.clear(&model).await;
            model.prepare(&mut lab.session).await.unwrap();
            let forms = model.forms();
            for (_, sql) in forms.set_statements(&model.projection) {
                let prepared = (&mut lab.session.connection).prepare(sql.clone()).await;
                assert!(prepared.is_ok(), "{}: {:?}", sql.as_str(), prepared.err());
            }
            let mut handlers = model.projection.handlers();
            found.extend(handlers.find_map(|(_, it)| forms.one_by_one(it).map(str::to_owned)));
        });
    }
    runtime.block_on(lab.drop());
    let no_key =
        "A.sql:1:1: its WHERE has no column = :parameter on a column whose values compare exactly";
    let no_type = |place| format!("A.sql:{place}: the type of :data.amount does not follow");
    let used = |place, column| format!("A.sql:{place}: it uses {column} after assigning it");
    let wanted = [
        used("1:33", "n"),
        no_key.to_owned(),
        "A.sql:1:18: it changes n, which is part of a unique key or of its WHERE".to_owned(),
        no_key.to_owned(),
        no_type("1:110"),
        no_type("1:25"),
        "A.sql:2:34: n is a column of both the table and the new row".to_owned(),
        used("1:50", "day"),
        used("1:66", "note"),
        used("1:29", "n"),
        no_key.to_owned(),
        no_type("2:83"),
        no_key.to_owned(),
        "A.sql:1:44: the type of :data.span does not follow".to_owned(),
        no_type("1:25"),
        "A.sql:2:6: another part of the handler touches log too".to_owned(),
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!(found.starts_with(wanted), "{found} is not {wanted}");
    }
}
