//! The value that a column has after an event, as a set and one by one, on a real MySQL.

use sqlx::Connection;

use super::*;

/// A column type, a value of a payload, and the stored value as text, or a part of the reason to refuse it.
type Case = (&'static str, &'static str, Result<&'static str, &'static str>);

const TIME: Result<&str, &str> = Ok("2026-01-31 12:00:00");
const SECONDS: Result<&str, &str> = Err("has more digits of a second than its column (one.v)");
const NO_TIME: Result<&str, &str> = Err("is not a time such as 2026-01-31T12:00:00Z (one.v)");
const DIGITS: Result<&str, &str> = Err("has more digits behind the point than its column (one.v)");
const NOT_PLAIN: Result<&str, &str> = Err("is text and not a plain number (one.v)");
const BOOLEAN: Result<&str, &str> = Err("is a boolean, and its column has another type (one.v)");
const DOCUMENT: Result<&str, &str> = Err("is an object or array, and its column has another type");
const NUMBER: Result<&str, &str> = Err("is a number, and its column has another type (one.v)");
const SPACES: Result<&str, &str> = Err("ends in spaces that its column does not keep (one.v)");
const NO_MEMBER: Result<&str, &str> = Err("is not one of the values of its column (one.v)");
const NO_DURATION: Result<&str, &str> = Err("is not a time such as 12:00:00 (one.v)");
const NO_YEAR: Result<&str, &str> = Err("is not a year of four digits (one.v)");

const CASES: [Case; 87] = [
    ("DATETIME", "\"2026-01-31T12:00:00Z\"", TIME),
    ("DATETIME", "\"2026-01-31T12:00:00.000Z\"", TIME),
    ("DATETIME", "\"2026-01-31T12:00:00+0000\"", TIME),
    ("DATETIME", "\"2026-01-31T12:00:00+00:00\"", TIME),
    ("DATETIME", "\"2026-01-31T17:30:00+05:30\"", TIME),
    ("DATETIME", "\"2026-01-31 12:00:00\"", TIME),
    ("DATETIME", "\"2026-01-31\"", Ok("2026-01-31 00:00:00")),
    ("DATETIME", "\"2026-01-31T12:00:00.5Z\"", SECONDS),
    ("DATETIME", "\"10:11:12\"", NO_TIME),
    ("DATETIME", "20260131", NUMBER),
    ("DATETIME(3)", "\"2026-01-31T12:00:00.250Z\"", Ok("2026-01-31 12:00:00.250")),
    ("DATETIME(3)", "\"2026-01-31T12:00:00.2501Z\"", SECONDS),
    ("DATETIME(6)", "\"2026-01-31T12:00:00.123456Z\"", Ok("2026-01-31 12:00:00.123456")),
    ("DATETIME(6)", "\"2026-01-31T12:00:00.1234560Z\"", Ok("2026-01-31 12:00:00.123456")),
    ("DATETIME(6)", "\"2026-01-31T12:00:00.1234567Z\"", SECONDS),
    ("TIMESTAMP NULL", "\"2026-01-31T12:00:00Z\"", TIME),
    ("TIMESTAMP NULL", "\"2026-01-31T12:00:00.000+0000\"", TIME),
    ("TIMESTAMP(3) NULL", "\"2026-01-31T13:00:00.250+01:00\"", Ok("2026-01-31 12:00:00.250")),
    ("TIMESTAMP NULL", "\"1950-01-31T12:00:00Z\"", Err("Incorrect datetime value")),
    ("DATE", "\"2026-01-31\"", Ok("2026-01-31")),
    ("DATE", "\"2026-01-31T00:00:00.000Z\"", Ok("2026-01-31")),
    (
        "DATE",
        "\"2026-01-31T12:00:00Z\"",
        Err("has a time of day, and its column is a DATE (one.v)"),
    ),
    ("DATE", "\"10:11:12\"", NO_TIME),
    ("DATE", "\"2026-02-30\"", NO_TIME),
    ("TIME", "\"-800:59:59\"", Ok("-800:59:59")),
    ("TIME", "\"12:00:00.000\"", Ok("12:00:00")),
    ("TIME", "\"12:00:00.9\"", NO_DURATION),
    ("TIME", "\"1234\"", NO_DURATION),
    ("TIME", "\"1 12:00:00\"", NO_DURATION),
    ("TIME", "\"900:00:00\"", NO_DURATION),
    ("TIME", "\"2026-01-31 12:00:00\"", NO_DURATION),
    ("TIME", "1234", NUMBER),
    ("TIME", "true", BOOLEAN),
    ("YEAR", "2026", Ok("2026")),
    ("YEAR", "\"2026\"", Ok("2026")),
    ("YEAR", "26", NO_YEAR),
    ("YEAR", "\"0\"", NO_YEAR),
    ("JSON", "\"vip\"", Ok("\"vip\"")),
    ("JSON", "1", Ok("1")),
    ("JSON", "1.50", Ok("1.5")),
    ("JSON", "true", Ok("true")),
    ("JSON", "\"1\"", Ok("\"1\"")),
    ("JSON", "\"true\"", Ok("\"true\"")),
    ("JSON", "\"null\"", Ok("\"null\"")),
    ("JSON", "\"{}\"", Ok("\"{}\"")),
    ("JSON", "\"\\\"\\\\ \u{1f389}\"", Ok("\"\\\"\\\\ \u{1f389}\"")),
    ("JSON", "{\"a\": [1, \"1\"]}", Ok("{\"a\": [1, \"1\"]}")),
    ("JSON", "null", Ok("NULL")),
    ("VARCHAR(5)", "\"true\"", Ok("true")),
    ("VARCHAR(5)", "true", BOOLEAN),
    ("VARCHAR(5)", "19.90", Ok("19.90")),
    ("VARCHAR(5)", "{\"a\": 1}", DOCUMENT),
    ("VARCHAR(5)", "\"abcd \"", Ok("abcd ")),
    ("VARCHAR(5)", "\"abcde \"", SPACES),
    ("VARCHAR(5)", "\"abcdef\"", Err("Data too long")),
    ("CHAR(5)", "\"ab \"", SPACES),
    ("TEXT", "[1]", DOCUMENT),
    ("TEXT", "false", BOOLEAN),
    ("ENUM('a', 'b', '1')", "\"b\"", Ok("b")),
    ("ENUM('a', 'b', '1')", "\"1\"", Ok("1")),
    ("ENUM('a', 'b', '1')", "\"0\"", NO_MEMBER),
    ("ENUM('a', 'b', '1')", "\"2\"", NO_MEMBER),
    ("ENUM('a', 'b', '1')", "\"A\"", NO_MEMBER),
    ("ENUM('a', 'b', '1')", "2", NUMBER),
    ("ENUM('a', 'b', '1')", "true", BOOLEAN),
    ("SET('a', 'b')", "\"a,b\"", Ok("a,b")),
    ("SET('a', 'b')", "\"\"", Ok("")),
    ("SET('a', 'b')", "\"3\"", NO_MEMBER),
    ("INT", "true", Ok("1")),
    ("INT", "1.0", Ok("1")),
    ("INT", "\"12\"", Ok("12")),
    ("INT", "1.5", DIGITS),
    ("INT", "\"1.5\"", DIGITS),
    ("INT", "\" 12\"", NOT_PLAIN),
    ("INT", "\"1e2\"", NOT_PLAIN),
    ("INT", "\"abc\"", Err("MySQL refused")),
    ("INT", "3000000000", Err("Out of range")),
    ("DECIMAL(10, 2)", "19.9", Ok("19.90")),
    ("DECIMAL(10, 2)", "\"19.90\"", Ok("19.90")),
    ("DECIMAL(10, 2)", "1.005", DIGITS),
    ("DECIMAL(10, 2)", "true", BOOLEAN),
    ("DECIMAL(10, 2)", "\"1e-3\"", NOT_PLAIN),
    ("DOUBLE", "\"1.5\"", Ok("1.5")),
    ("DOUBLE", "true", BOOLEAN),
    ("BIT(8)", "\"1\"", Err("is text, and its column has another type (one.v)")),
    ("BINARY(4)", "\"ab\"", Err("is shorter than its BINARY column (one.v)")),
    ("BINARY(4)", "\"abcd\"", Ok("abcd")),
];

/// Two statements that store the value, and one that runs event by event.
const HANDLERS: [(&str, &str); 3] = [
    ("A", "INSERT INTO one (id, v) VALUES (:stream_id, :data.v)"),
    (
        "B",
        "INSERT INTO one (id) VALUES (:stream_id) ON DUPLICATE KEY UPDATE v = COALESCE(:data.v, NULL)",
    ),
    ("C", "INSERT INTO one SELECT :stream_id, :data.v"),
];

fn table(column_type: &str) -> String {
    format!(
        "CREATE TABLE one (
             id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY, v {column_type})"
    )
}

/// Creates the table again. The first time, the migration creates it.
async fn renew(lab: &mut Lab, tables: &str) {
    if lab.migrated {
        lab.session.run("DROP TABLE one".to_owned()).await.unwrap();
        lab.session.run(tables.to_owned()).await.unwrap();
        // MySQL keeps the types of the parameters of a prepared statement when it prepares it again.
        lab.session.connection.clear_cached_statements().await.unwrap();
    }
}

/// The streams of each value, and the type of each event that it occurs in. The second event of a stream of B
/// sets what the first one inserts.
const STREAMS: u8 = 6;
const EVENTS: [(u8, usize); 8] = [(0, 0), (3, 0), (1, 1), (4, 1), (1, 1), (4, 1), (2, 2), (5, 2)];

/// The stored value, or the reason of the parked stream, on each stream of each value.
async fn outcomes(
    lab: &mut Lab,
    model: &ReadModel,
    values: &[&'static str],
) -> Vec<(&'static str, Result<String, String>)> {
    let first_streams = (0..).step_by(usize::from(STREAMS));
    let raw: Vec<(u8, usize, String)> = values
        .iter()
        .zip(first_streams.clone())
        .flat_map(|(value, first)| {
            EVENTS.map(|(stream, kind)| (first + stream, kind, format!("{{\"v\": {value}}}")))
        })
        .collect();
    lab.apply(model, &events(&raw), raw.len()).await;
    let parked = lab.session.parked(&model.ledger).await.unwrap();
    let rows: HashMap<String, String> =
        sqlx::query_as("SELECT id, COALESCE(CAST(v AS CHAR), 'NULL') FROM one")
            .persistent(false)
            .fetch_all(&mut lab.session.connection)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let outcome = |stream: u8| {
        let id = format!("order-{stream}");
        match parked.iter().find(|it| it.stream_id.as_str() == id) {
            Some(parked) => Err(parked.reason.clone()),
            None => Ok(rows[&id].clone()),
        }
    };
    let all = values.iter().zip(first_streams);
    all.flat_map(|(value, first)| (0..STREAMS).map(move |stream| (*value, first + stream)))
        .map(|(value, stream)| (value, outcome(stream)))
        .collect()
}

/// A column keeps the value of an event, or refuses it with a reason that does not contain the value.
#[test]
fn a_column_keeps_a_value_or_refuses_it() {
    Runtime::new().unwrap().block_on(async {
        let mut lab = Lab::create().await;
        let mut surprises = Vec::new();
        for cases in CASES.chunk_by(|one, next| one.0 == next.0) {
            let column_type = cases[0].0;
            let folder = tempfile::tempdir().unwrap();
            let tables = table(column_type);
            write_files(folder.path(), true, &tables, HANDLERS);
            renew(&mut lab, &tables).await;
            let values: Vec<_> = cases.iter().map(|(_, value, _)| *value).collect();
            for one_by_one in [false, true] {
                let model = model(folder.path(), one_by_one);
                for (value, outcome) in outcomes(&mut lab, &model, &values).await {
                    let expected = cases.iter().find(|case| case.1 == value).unwrap().2;
                    let as_expected = match (&outcome, expected) {
                        (Ok(stored), Ok(wanted)) => stored == wanted,
                        (Err(reason), Err(wanted)) => {
                            reason.contains(wanted) && reason.contains(".sql:1:1: ")
                        }
                        _ => false,
                    };
                    if !as_expected {
                        surprises.push(format!(
                            "{column_type} {value} (one by one: {one_by_one}): {outcome:?}, not {expected:?}"
                        ));
                    }
                }
            }
        }
        lab.drop().await;
        assert!(surprises.is_empty(), "{surprises:#?}");
    });
}

/// A time is converted wherever a statement uses it as a time, and a number where it is compared.
#[test]
fn a_value_is_converted_in_expressions_and_conditions() {
    Runtime::new().unwrap().block_on(async {
        let mut lab = Lab::create().await;
        let folder = tempfile::tempdir().unwrap();
        let tables = "CREATE TABLE one (
            id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
            at DATETIME(3) NULL, day DATE NULL, seconds BIGINT NULL, n INT NOT NULL DEFAULT 0,
            total DECIMAL(40, 1) NOT NULL DEFAULT 12345678901234567890.0, doc JSON NULL,
            closed DATETIME NULL, opened TIMESTAMP NULL, tag JSON NULL, tags JSON NULL)";
        let handlers = [
            ("A", "INSERT INTO one (id, at) VALUES (:stream_id, :data.at)"),
            (
                "B",
                "UPDATE one AS o SET o.day = DATE(:data.at), o.seconds = TIMESTAMPDIFF(SECOND, :data.before, o.at),
                     o.at = GREATEST(o.at, COALESCE(:data.later?, :data.at)),
                     o.doc = JSON_OBJECT('vip', CAST(:data.flag AS JSON), 'n', CAST(:data.text AS JSON)),
                     o.total = o.total + :data.text
                 WHERE o.id = :stream_id AND o.at IN (:data.before, :data.at) AND :data.at <= o.at",
            ),
            (
                "D",
                "UPDATE one SET closed = NULLIF(:data.empty, ''), opened = NULLIF(:data.before, ''),
                     tag = IF(:data.flag, :data.text, NULL), tags = JSON_EXTRACT(:data.list, '$'),
                     n = CASE WHEN :data.empty = '' THEN n ELSE :data.empty END
                 WHERE id = :stream_id",
            ),
            ("C", "UPDATE one SET n = n + 1 WHERE at BETWEEN :data.before AND :data.later + INTERVAL 1 DAY"),
        ];
        write_files(folder.path(), true, tables, handlers);
        let data = "{\"at\": \"2026-01-31T12:00:00.250Z\", \"before\": \"2026-01-31T11:00:00+0000\",
                     \"later\": \"2026-01-31T14:00:00.500+01:00\", \"flag\": true, \"text\": \"0.1\",
                     \"empty\": \"\", \"list\": \"[1]\"}";
        let model = model(folder.path(), false);
        let raw = [0, 1, 2, 3].map(|kind| (0, kind, data.to_owned()));
        lab.apply(&model, &events(&raw), 1).await;
        let parked = lab.session.parked(&model.ledger).await.unwrap();
        assert_eq!(parked.len(), 0, "{:?}", parked.first().map(|it| &it.reason));
        let row: String = sqlx::query_scalar("SELECT CONCAT_WS(' ', at, day, seconds, n, total, doc, closed, opened, tag, tags) FROM one")
            .fetch_one(&mut lab.session.connection)
            .await
            .unwrap();
        assert_eq!(
            row,
            "2026-01-31 13:00:00.500 2026-01-31 3600 1 12345678901234567890.1 {\"n\": \"0.1\", \"vip\": true} \
             2026-01-31 11:00:00 \"0.1\" [1]"
        );
        lab.drop().await;
    });
}

/// A boolean is a number like any other in a sum, also where the sum is below zero.
#[test]
fn a_boolean_adds_to_a_negative_number() {
    Runtime::new().unwrap().block_on(async {
        let mut lab = Lab::create().await;
        let folder = tempfile::tempdir().unwrap();
        let tables = "CREATE TABLE one (
            id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY, n INT NOT NULL)";
        let handlers = [
            ("A", "INSERT INTO one (id, n) VALUES (:stream_id, -5)"),
            ("B", "UPDATE one SET n = n + :data.flag WHERE id = :stream_id"),
        ];
        write_files(folder.path(), true, tables, handlers);
        let raw = [(0, 0, "{}"), (1, 0, "{}"), (0, 1, "{\"flag\": false}"), (1, 1, "{\"flag\": true}")];
        let raw = raw.map(|(stream, kind, data)| (stream, kind, data.to_owned()));
        for one_by_one in [true, false] {
            let model = model(folder.path(), one_by_one);
            lab.apply(&model, &events(&raw), 10).await;
            let parked = lab.session.parked(&model.ledger).await.unwrap();
            assert_eq!(parked.len(), 0, "{:?}", parked.first().map(|it| &it.reason));
            let rows: Vec<i32> = sqlx::query_scalar("SELECT n FROM one ORDER BY id")
                .fetch_all(&mut lab.session.connection)
                .await
                .unwrap();
            assert_eq!(rows, [-5, -4], "one by one: {one_by_one}");
        }
        lab.drop().await;
    });
}

/// Without strict values, MySQL converts what it can.
#[test]
fn values_that_are_not_strict_are_converted_by_mysql() {
    Runtime::new().unwrap().block_on(async {
        let mut lab = Lab::create().await;
        for (column_type, value, expected) in [
            ("VARCHAR(5)", "true", "1"),
            ("TEXT", "{\"a\": 1}", "{\"a\": 1}"),
            ("DECIMAL(10, 2)", "1.005", "1.01"),
            ("DATETIME", "\"2026-01-31T12:00:00.5Z\"", "2026-01-31 12:00:01"),
            ("DATE", "\"2026-01-31T12:00:00Z\"", "2026-01-31"),
            ("ENUM('a', 'b')", "\"2\"", "b"),
            ("JSON", "\"1\"", "\"1\""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let tables = table(column_type);
            write_files(folder.path(), false, &tables, HANDLERS);
            renew(&mut lab, &tables).await;
            for one_by_one in [false, true] {
                let model = model(folder.path(), one_by_one);
                for (_, outcome) in outcomes(&mut lab, &model, &[value]).await {
                    assert_eq!(outcome.as_deref(), Ok(expected), "{column_type} {value}");
                }
            }
        }
        lab.drop().await;
    });
}
