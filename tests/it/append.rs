//! The contract of `append_to_stream` with applications.

use futures_util::future::join_all;
use harness::{Stack, append, event};
use serde_json::{Value, json};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

/// SQLSTATE and message of a refusal.
fn refusal(result: Result<i64, sqlx::Error>) -> (String, String) {
    let error = result.expect_err("the append is refused");
    let error = error.as_database_error().expect("PostgreSQL refuses it");
    (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
}

async fn versions(connection: &mut PgConnection, stream_id: &str) -> Vec<i64> {
    sqlx::query_scalar("SELECT stream_version FROM events WHERE stream_id = $1 ORDER BY position")
        .bind(stream_id)
        .fetch_all(connection)
        .await
        .expect("the versions are read")
}

/// An append assigns consecutive versions and copies each event into the outbox.
#[tokio::test]
async fn events_get_the_next_versions_and_land_in_the_outbox() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let events = json!([event("A", &json!({"n": 1})), event("B", &json!({"n": 2}))]);
        assert_eq!(append(&mut connection, "order-1", Some(0), &events).await.unwrap(), 2);
        let more = json!([event("C", &json!({"price": 19.90}))]);
        assert_eq!(append(&mut connection, "order-1", Some(2), &more).await.unwrap(), 3);
        assert_eq!(versions(&mut connection, "order-1").await, [1, 2, 3]);
        let outbox: Vec<(i64, String, String)> = sqlx::query_as(
            "SELECT stream_version, routing_key, payload::text FROM outbox ORDER BY id",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let expected = [
            (1, "order.A", r#"{"n": 1}"#),
            (2, "order.B", r#"{"n": 2}"#),
            (3, "order.C", r#"{"price": 19.9}"#),
        ];
        let expected = expected.map(|(n, key, data)| (n, key.to_owned(), data.to_owned()));
        assert_eq!(outbox, expected);
    })
    .await;
}

/// A rollback removes the events and their rows in the outbox.
#[tokio::test]
async fn a_rolled_back_append_leaves_nothing() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let mut transaction = connection.begin().await.unwrap();
        append(&mut transaction, "order-1", Some(0), &json!([event("A", &json!({}))]))
            .await
            .unwrap();
        transaction.rollback().await.unwrap();
        let left: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM outbox)",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(left, 0);
    })
    .await;
}

/// Applications can distinguish refusals by their SQLSTATE. Method: one call for each malformed
/// argument.
#[tokio::test]
async fn each_malformed_argument_has_its_sqlstate() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let one = event("A", &json!({}));
        append(&mut connection, "order-1", Some(0), &json!([one])).await.unwrap();
        let with = |changes: Value| {
            let mut event = event("A", &json!({}));
            for (key, value) in changes.as_object().unwrap() {
                if value == &json!("REMOVE") {
                    event.as_object_mut().unwrap().remove(key);
                } else {
                    event[key] = value.clone();
                }
            }
            json!([event])
        };
        let good = json!([event("A", &json!({}))]);
        let twice = event("A", &json!({}));
        let long = "x".repeat(256);
        let cases = [
            (
                "order-1",
                Some(5),
                good.clone(),
                "ES001",
                "is at version 1, but version 5 was expected",
            ),
            (
                "order-2",
                Some(1),
                good.clone(),
                "ES001",
                "is at version 0, but version 1 was expected",
            ),
            ("", None, good.clone(), "ES002", "stream id is empty"),
            ("a.b-1", None, good.clone(), "ES002", "is malformed"),
            ("a b-1", None, good.clone(), "ES002", "is malformed"),
            ("order-\n", None, good.clone(), "ES002", "is malformed"),
            (long.as_str(), None, good.clone(), "ES002", "is malformed"),
            ("order-3", None, with(json!({"event_id": "REMOVE"})), "ES003", "event_id is missing"),
            ("order-3", None, with(json!({"event_id": "x"})), "ES003", "event_id is not a UUID"),
            ("order-3", None, with(json!({"event_id": 7})), "ES003", "event_id is not a UUID"),
            (
                "order-3",
                None,
                with(json!({"event_id": "00000000-0000-0000-0000-000000000000"})),
                "ES003",
                "event_id is the nil UUID",
            ),
            ("order-3", None, json!([twice, twice]), "ES003", "event_id appears twice"),
            ("order-3", None, with(json!({"type": "REMOVE"})), "ES004", "type is missing"),
            ("order-3", None, with(json!({"type": ""})), "ES004", "type is malformed"),
            ("order-3", None, with(json!({"type": "a/b"})), "ES004", "type is malformed"),
            ("order-3", None, with(json!({"type": "x".repeat(128)})), "ES004", "type is malformed"),
            ("order-3", None, with(json!({"data": "REMOVE"})), "ES005", "data is missing or not"),
            ("order-3", None, with(json!({"data": [1]})), "ES005", "data is missing or not"),
            ("order-3", None, with(json!({"data": null})), "ES005", "data is missing or not"),
            ("order-3", None, json!([one]), "ES006", "is already used in stream \"order-1\""),
            // A repeated event between new ones is refused, too: skipping it would leave a gap.
            (
                "order-3",
                None,
                json!([event("A", &json!({})), one, event("A", &json!({}))]),
                "ES006",
                "is already used in stream \"order-1\"",
            ),
            ("order-3", Some(-1), good.clone(), "ES007", "is negative"),
            ("order-3", None, json!([]), "ES007", "not a JSON array with at least one event"),
            ("order-3", None, json!({}), "ES007", "not a JSON array with at least one event"),
            ("order-3", None, json!([good[0], 7]), "ES007", "event 2 for stream"),
            ("order-3", None, with(json!({"metadata": 1})), "ES007", "metadata is not a JSON obj"),
            (
                "order-3",
                None,
                with(json!({"metadata": {"x": "y".repeat(33_000)}})),
                "ES007",
                "metadata is longer than 32768 bytes",
            ),
            ("order-3", None, with(json!({"schema_version": 0})), "ES007", "schema_version is not"),
            (
                "order-3",
                None,
                with(json!({"schema_version": 1.5})),
                "ES007",
                "schema_version is not",
            ),
            ("order-3", None, with(json!({"occurred_at": "today"})), "ES007", "occurred_at is not"),
            (
                "order-3",
                None,
                with(json!({"occurred_at": "2026-01-31T09:30:00"})),
                "ES007",
                "occurred_at is not",
            ),
            (
                "order-3",
                None,
                with(json!({"occurred_at": "2026-13-01T00:00:00Z"})),
                "22008",
                "out of",
            ),
        ];
        for (stream_id, expected, events, sqlstate, reason) in cases {
            let result = append(&mut connection, stream_id, expected, &events).await;
            let (code, message) = refusal(result);
            assert_eq!(code, sqlstate, "{stream_id} {events}: {message}");
            assert!(message.contains(reason), "{message:?} should contain {reason:?}");
        }
        assert_eq!(versions(&mut connection, "order-3").await, [0_i64; 0]);
    })
    .await;
}

/// A client that lost the answer can repeat its append.
#[tokio::test]
async fn appending_the_same_event_again_is_harmless() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let events = [event("A", &json!({})), event("B", &json!({})), event("C", &json!({}))];
        let call = |range: std::ops::Range<usize>| json!(events[range]);
        assert_eq!(append(&mut connection, "order-1", Some(0), &call(0..2)).await.unwrap(), 2);
        // A client that lost the answer retries with the old expected version.
        assert_eq!(append(&mut connection, "order-1", Some(0), &call(0..2)).await.unwrap(), 2);
        // Only the missing event is appended.
        assert_eq!(append(&mut connection, "order-1", None, &call(1..3)).await.unwrap(), 3);
        assert_eq!(versions(&mut connection, "order-1").await, [1, 2, 3]);
        let (code, _) = refusal(append(&mut connection, "order-2", None, &call(0..1)).await);
        assert_eq!(code, "ES006");
    })
    .await;
}

/// Exactly one of several concurrent appends with the same expected version succeeds.
#[tokio::test]
async fn of_sixteen_clients_with_one_expected_version_one_wins() {
    Stack::run(async |stack| {
        for round in 0..5_i64 {
            let clients = (0..16).map(async |client| {
                let mut connection = stack.postgres().await;
                let events = json!([event("A", &json!({ "client": client }))]);
                append(&mut connection, "order-1", Some(round), &events).await
            });
            let results = join_all(clients).await;
            let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!(won.len(), 1);
            for result in lost {
                let (code, message) = refusal(result);
                assert_eq!(code, "ES001");
                let (now, then) = (round + 1, round);
                let expected = format!("is at version {now}, but version {then} was expected");
                assert!(message.contains(&expected), "{message}");
            }
        }
    })
    .await;
}

/// Concurrent appends without an expected version all succeed, without a gap in the versions.
#[tokio::test]
async fn clients_that_expect_any_version_queue_up() {
    Stack::run(async |stack| {
        let clients = (0..16).map(async |client| {
            let mut connection = stack.postgres().await;
            for _ in 0..5 {
                let events = json!([event("A", &json!({ "client": client }))]);
                append(&mut connection, "order-1", None, &events).await.unwrap();
            }
        });
        join_all(clients).await;
        let mut connection = stack.postgres().await;
        let expected: Vec<i64> = (1..=80).collect();
        assert_eq!(versions(&mut connection, "order-1").await, expected);
    })
    .await;
}

/// An old snapshot may hold a stale version. The append then fails with a serialisation failure, which
/// frameworks retry. It never stores a wrong version.
#[tokio::test]
async fn under_repeatable_read_a_lost_race_is_a_serialisation_failure() {
    Stack::run(async |stack| {
        let (mut one, mut two) = (stack.postgres().await, stack.postgres().await);
        one.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        one.execute("SELECT 1 FROM events").await.unwrap();
        let events = || json!([event("A", &json!({}))]);
        append(&mut two, "order-1", Some(0), &events()).await.unwrap();
        let (code, _) = refusal(append(&mut one, "order-1", Some(0), &events()).await);
        assert_eq!(code, "40001");
    })
    .await;
}

/// Raw inserts obey the same rules as `append_to_stream`: no gap, and version order equals position
/// order.
#[tokio::test]
async fn a_raw_insert_cannot_leave_a_hole_or_change_the_order() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let insert = |rows: &[i64]| {
            let rows: Vec<_> = rows
                .iter()
                .map(|version| format!("(gen_random_uuid(), 'order-1', {version}, 'A', '{{}}')"))
                .collect();
            let columns = "event_id, stream_id, stream_version, event_type, data";
            sqlx::AssertSqlSafe(format!("INSERT INTO events ({columns}) VALUES {}", rows.join(",")))
        };
        for rows in [&[2][..], &[1, 3], &[2, 1]] {
            let error = connection.execute(insert(rows)).await.expect_err("the append is refused");
            let code = error.as_database_error().and_then(DatabaseError::code);
            assert_eq!(code.as_deref(), Some("40001"), "{rows:?}");
        }
        connection.execute(insert(&[1, 2])).await.unwrap();

        // Version 4 is refused while version 3 is uncommitted.
        let mut other = stack.postgres().await;
        let mut open = other.begin().await.unwrap();
        open.execute(insert(&[3])).await.unwrap();
        assert!(connection.execute(insert(&[4])).await.is_err());
        open.rollback().await.unwrap();
        assert_eq!(versions(&mut connection, "order-1").await, [1, 2]);
    })
    .await;
}

/// PostgreSQL refuses every change of a stored event.
#[tokio::test]
async fn events_cannot_be_changed() {
    Stack::run(async |stack| {
        stack.append("order-1", &[event("A", &json!({}))]).await;
        let mut connection = stack.postgres().await;
        for change in ["UPDATE events SET data = '{}'", "DELETE FROM events", "TRUNCATE events"] {
            let error = connection.execute(change).await.expect_err("the append is refused");
            let code = error.as_database_error().and_then(DatabaseError::code);
            assert_eq!(code.as_deref(), Some("ES008"), "{change}");
        }
    })
    .await;
}

/// Objects of the caller must not replace those of the event store.
#[tokio::test]
async fn a_search_path_cannot_redirect_an_append() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        connection.execute("CREATE TEMPORARY TABLE outbox (event_id uuid)").await.unwrap();
        connection.execute("CREATE TEMPORARY TABLE events (event_id uuid)").await.unwrap();
        let events = json!([event("A", &json!({}))]);
        append(&mut connection, "order-1", Some(0), &events).await.unwrap();
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM public.outbox")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(count, 1);
    })
    .await;
}
