//! The contract of `append_event` with applications.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use harness::{Stack, append, event};
use serde_json::json;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::timeout;
use uuid::Uuid;

use crate::projector::{TALLY, wait_for};

/// An event id, as an SQL literal.
const ID: &str = "'00000000-0000-4000-8000-000000000001'";

/// The event's id, stream and version.
type Appended = (Uuid, String, i64);

/// Calls `append_event` with arguments in SQL syntax.
async fn append_event(
    connection: &mut PgConnection,
    arguments: &str,
) -> Result<Appended, sqlx::Error> {
    let call = format!("SELECT event_id, stream_id, stream_version FROM append_event({arguments})");
    sqlx::query_as(AssertSqlSafe(call)).fetch_one(connection).await
}

/// SQLSTATE and message of a refusal.
fn refusal(result: Result<Appended, sqlx::Error>) -> (String, String) {
    let error = result.expect_err("the call is refused");
    let error = error.as_database_error().expect("PostgreSQL refuses it");
    (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
}

async fn count(connection: &mut PgConnection) -> (i64, i64) {
    sqlx::query_as("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM outbox)")
        .fetch_one(connection)
        .await
        .unwrap()
}

/// An event without a key starts its own stream, named after the event's id.
#[tokio::test]
async fn without_a_key_an_event_is_a_stream_of_its_own() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let call = "'mail', 'MailRequested', '{}'";
        let (id, stream_id, version) = append_event(&mut connection, call).await.unwrap();
        assert_eq!((stream_id, version), (format!("mail-{id}"), 1));
        let (other, stream_id, version) = append_event(&mut connection, call).await.unwrap();
        assert_eq!((stream_id, version), (format!("mail-{other}"), 1));
        assert_ne!(id, other);

        let call = format!("'mail', 'MailRequested', '{{}}', event_id => {ID}");
        let (id, stream_id, version) = append_event(&mut connection, &call).await.unwrap();
        assert_eq!(id, Uuid::from_u128(0x4000_8000_0000_0000_0001));
        assert_eq!((stream_id, version), (format!("mail-{id}"), 1));
    })
    .await;
}

/// Events with the same key form one stream, which `append_to_stream` can continue.
#[tokio::test]
async fn with_a_key_an_event_gets_the_next_version_of_its_stream() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let call = "'order', 'OrderPaid', '{}', '7-b'";
        for expected in 1..=2 {
            let (_, stream_id, version) = append_event(&mut connection, call).await.unwrap();
            assert_eq!((stream_id.as_str(), version), ("order-7-b", expected));
        }
        // `append_to_stream` continues the same stream.
        let events = json!([event("OrderSent", &json!({}))]);
        assert_eq!(append(&mut connection, "order-7-b", Some(2), &events).await.unwrap(), 3);
        assert_eq!(append_event(&mut connection, call).await.unwrap().2, 4);
    })
    .await;
}

/// Event store and outbox hold every argument of the call, defaults included.
#[tokio::test]
async fn every_argument_is_stored_and_copied_into_the_outbox() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        append_event(&mut connection, "'mail', 'MailRequested', '{\"to\": \"zoe\"}', 'zoe'")
            .await
            .unwrap();
        // Monrovia's offset was -00:43:08 in 1900. append_to_stream() refuses offsets with seconds.
        connection.execute("SET TIME ZONE 'Africa/Monrovia'").await.unwrap();
        append_event(
            &mut connection,
            "category => 'mail', type => 'MailSent', data => '{\"n\": 19.90}', key => 'zoe',
             metadata => '{\"correlation_id\": \"x\"}', occurred_at => '1900-01-01 00:00:00.123456Z',
             schema_version => 2",
        )
        .await
        .unwrap();
        connection.execute("SET TIME ZONE 'UTC'").await.unwrap();
        let expected = [
            r#"MailRequested|1|{"to": "zoe"}|{}|now|mail.MailRequested"#,
            r#"MailSent|2|{"n": 19.90}|{"correlation_id": "x"}|1900-01-01 00:00:00.123456+00|mail.MailSent"#,
        ];
        for (table, data, routing_key) in [
            ("events", "data", "'mail.' || event_type"),
            ("outbox", "payload", "routing_key"),
        ] {
            let stored: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
                "SELECT concat_ws('|', event_type, schema_version, {data}, metadata,
                        CASE WHEN occurred_at > now() - interval '1 minute' THEN 'now'
                             ELSE occurred_at::text END, {routing_key})
                 FROM {table} ORDER BY position",
            )))
            .fetch_all(&mut connection)
            .await
            .unwrap();
            assert_eq!(stored, expected, "{table}");
        }
    })
    .await;
}

/// Drivers that send parameters without a type (PDO, node-postgres) let PostgreSQL infer it.
#[tokio::test]
async fn the_types_of_parameters_are_inferred() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        connection
            .execute(
                "PREPARE append AS SELECT * FROM append_event(
                     $1, $2, $3, key => $4, event_id => $5, metadata => $6, occurred_at => $7,
                     schema_version => $8)",
            )
            .await
            .unwrap();
        let types: Vec<String> = sqlx::query_scalar(
            "SELECT unnest(parameter_types)::text FROM pg_prepared_statements WHERE name = 'append'",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let expected = "text text jsonb text uuid jsonb timestamp with time zone integer";
        assert_eq!(types.join(" "), expected);
        // NULL equals an omitted argument.
        connection
            .execute("EXECUTE append('mail', 'A', '{}', NULL, NULL, NULL, NULL, NULL)")
            .await
            .unwrap();
        assert_eq!(count(&mut connection).await, (1, 1));
    })
    .await;
}

/// Concurrent calls with the same key all succeed, without a gap in the versions.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_with_one_key_get_consecutive_versions() {
    Stack::run(async |stack| {
        let clients = (0..16).map(async |_| {
            let mut connection = stack.postgres().await;
            let mut appended = Vec::new();
            for _ in 0..5 {
                let call = append_event(&mut connection, "'order', 'A', '{}', '1'");
                appended.push(call.await.unwrap());
            }
            appended
        });
        let appended: BTreeSet<(i64, Uuid)> =
            join_all(clients).await.into_iter().flatten().map(|(id, _, at)| (at, id)).collect();
        let stored: Vec<(i64, Uuid)> = sqlx::query_as(
            "SELECT stream_version, event_id FROM events WHERE stream_id = 'order-1'
             ORDER BY position",
        )
        .fetch_all(&mut stack.postgres().await)
        .await
        .unwrap();
        assert!(stored.iter().map(|(version, _)| *version).eq(1..=80), "{stored:?}");
        assert_eq!(appended.into_iter().collect::<Vec<_>>(), stored);
    })
    .await;
}

/// The second call begins before the first is committed, so it cannot see the first version.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_an_open_one_with_the_same_key() {
    Stack::run(async |stack| {
        for (end, key, expected) in [("COMMIT", "1", 2), ("ROLLBACK", "2", 1)] {
            let (mut one, mut two) = (stack.postgres().await, stack.postgres().await);
            let call = format!("'order', 'A', '{{}}', '{key}'");
            one.execute("BEGIN").await.unwrap();
            assert_eq!(append_event(&mut one, &call).await.unwrap().2, 1);
            let mut second = Box::pin(append_event(&mut two, &call));
            assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "{end}");
            one.execute(end).await.unwrap();
            assert_eq!(second.await.unwrap().2, expected, "{end}");
        }
    })
    .await;
}

/// A client can repeat a call with the same event id. The repetition returns the first result.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_again_has_no_effect() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        for key in ["NULL", "'zoe'"] {
            let before = count(&mut connection).await.0;
            let id = Uuid::new_v4();
            let call = format!("'mail', 'A', '{{\"n\": 1}}', {key}, event_id => '{id}'");

            // A concurrent second call waits for the first.
            let mut other = stack.postgres().await;
            other.execute("BEGIN").await.unwrap();
            let first = append_event(&mut other, &call).await.unwrap();
            let mut second = Box::pin(append_event(&mut connection, &call));
            assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "{key}");
            other.execute("COMMIT").await.unwrap();
            assert_eq!(second.await.unwrap(), first, "{key}");
            assert_eq!(count(&mut connection).await, (before + 1, before + 1), "{key}");

            // A later repetition has no effect either. Its metadata and its time may differ.
            append(&mut connection, &first.1, Some(1), &json!([event("B", &json!({}))]))
                .await
                .unwrap();
            let call = format!("{call}, metadata => '{{\"try\": 2}}', occurred_at => now()");
            assert_eq!(append_event(&mut connection, &call).await.unwrap(), first, "{key}");
            assert_eq!(count(&mut connection).await, (before + 2, before + 2), "{key}");
        }
    })
    .await;
}

/// An event id identifies one event: a call with the same id and other content is refused.
#[tokio::test]
async fn the_same_id_with_other_content_is_refused() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let call = format!("'mail', 'A', '{{\"n\": 1}}', 'zoe', event_id => {ID}");
        append_event(&mut connection, &call).await.unwrap();
        let cases = [
            ("'mail', 'A', '{\"n\": 2}', 'zoe'", "version 1 of stream \"mail-zoe\", which has"),
            ("'mail', 'B', '{\"n\": 1}', 'zoe'", "version 1 of stream \"mail-zoe\", which has"),
            ("'mail', 'A', '{\"n\": 1}', 'bo'", "is already used in stream \"mail-zoe\""),
            ("'mail', 'A', '{\"n\": 1}'", "is already used in stream \"mail-zoe\""),
            ("'post', 'A', '{\"n\": 1}', 'zoe'", "is already used in stream \"mail-zoe\""),
        ];
        for (arguments, reason) in cases {
            let call = format!("{arguments}, event_id => {ID}");
            let (code, message) = refusal(append_event(&mut connection, &call).await);
            assert_eq!(code, "ES006", "{arguments}: {message}");
            assert!(message.contains(reason), "{arguments}: {message}");
        }
        assert_eq!(count(&mut connection).await, (1, 1));
    })
    .await;
}

/// Each refusal names the malformed argument and has the documented SQLSTATE.
#[tokio::test]
async fn each_malformed_argument_is_named_with_its_sqlstate() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let long = |length: usize| format!("'{}'", "x".repeat(length));
        let (category, key) = (long(219), long(251));
        let cases = [
            ("NULL, 'A', '{}'", "ES002", "category is empty"),
            ("'', 'A', '{}'", "ES002", "category is empty"),
            ("'mail-1', 'A', '{}'", "ES002", "category \"mail-1\" is malformed"),
            ("'-', 'A', '{}', 'zoe'", "ES002", "category \"-\" is malformed"),
            ("'a.b', 'A', '{}'", "ES002", "category \"a.b\" is malformed"),
            ("'a b', 'A', '{}'", "ES002", "category \"a b\" is malformed"),
            ("'mail', 'A', '{}', ''", "ES002", "key is empty"),
            ("'mail', 'A', '{}', E'a\\nb'", "ES002", "is malformed"),
            (
                &format!("'mail', 'A', '{{}}', {key}"),
                "ES002",
                "category and key are together longer than 254 bytes",
            ),
            (
                &format!("{category}, 'A', '{{}}'"),
                "ES002",
                "category and event_id are together longer than 254 bytes",
            ),
            (
                "'mail', 'A', '{}', event_id => '00000000-0000-0000-0000-000000000000'",
                "ES003",
                "event_id is the nil UUID",
            ),
            ("'mail', NULL, '{}'", "ES004", "type is missing"),
            ("'mail', '', '{}'", "ES004", "type is malformed"),
            ("'mail', 'a/b', '{}'", "ES004", "type is malformed"),
            ("'mail', 'A', NULL", "ES005", "data is missing or not"),
            ("'mail', 'A', 'null'", "ES005", "data is missing or not"),
            ("'mail', 'A', '[]'", "ES005", "data is missing or not"),
            ("'mail', 'A', '{}', metadata => '[]'", "ES007", "metadata is not a JSON object"),
            ("'mail', 'A', '{}', schema_version => 0", "ES007", "schema_version is not"),
            ("'mail', 'A', '{}', occurred_at => 'infinity'", "23514", "occurred_at infinity is"),
            ("'mail', 'A', '{}', occurred_at => '10000-01-01Z'", "23514", "the years 1 to 9999"),
            ("'mail', 'A', '{}', occurred_at => '0044-03-15Z BC'", "23514", "the years 1 to 9999"),
            // PostgreSQL refuses these before it calls the function.
            ("'mail', 'A', '{'", "22P02", "invalid input syntax for type json"),
            ("'mail', 'A', '{}', event_id => 'x'", "22P02", "invalid input syntax for type uuid"),
        ];
        for (arguments, code, reason) in cases {
            let (got, message) = refusal(append_event(&mut connection, arguments).await);
            assert_eq!(got, code, "{arguments}: {message}");
            assert!(message.contains(reason), "{arguments}: {message}");
        }
        assert_eq!(count(&mut connection).await, (0, 0));

        for (category, key) in [(long(218), "NULL".to_owned()), ("'mail'".to_owned(), long(250))] {
            let call = format!("{category}, 'A', '{{}}', {key}");
            append_event(&mut connection, &call).await.unwrap();
        }
        for time in ["0001-01-01Z", "9999-12-31 23:59:59.999999Z"] {
            let call = format!("'mail', 'A', '{{}}', occurred_at => '{time}'");
            append_event(&mut connection, &call).await.unwrap();
        }
    })
    .await;
}

/// A lost race fails with a serialisation failure, which frameworks retry.
#[tokio::test]
async fn under_repeatable_read_a_lost_race_is_a_serialisation_failure() {
    Stack::run(async |stack| {
        let (mut one, mut two) = (stack.postgres().await, stack.postgres().await);
        one.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        one.execute("SELECT 1 FROM events").await.unwrap();
        let call = format!("'mail', 'A', '{{}}', event_id => {ID}");
        append_event(&mut two, &call).await.unwrap();
        assert_eq!(refusal(append_event(&mut one, &call).await).0, "40001");
    })
    .await;
}

/// Objects of the caller must not replace those of the event store.
#[tokio::test]
async fn a_search_path_cannot_redirect_a_call() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        for own in [
            "CREATE TEMPORARY TABLE events (event_id uuid, stream_version bigint)",
            "CREATE SCHEMA own",
            "CREATE FUNCTION own.append_to_stream(text, bigint, jsonb) RETURNS bigint
             LANGUAGE sql AS 'SELECT 7::bigint'",
            "SET search_path = own, public",
        ] {
            connection.execute(own).await.unwrap();
        }
        let appended = append_event(&mut connection, "'mail', 'A', '{}', 'zoe'").await.unwrap();
        assert_eq!(appended.2, 1);
        let mut connection = stack.postgres().await;
        assert_eq!(count(&mut connection).await, (1, 1));
    })
    .await;
}

/// The function runs with the rights of its caller.
#[tokio::test]
async fn a_caller_needs_the_rights_to_append() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        // A role belongs to the whole server, so its name must be unique.
        let role = format!("{}_caller", stack.name());
        let call = "'mail', 'A', '{}'";
        let enter = format!("CREATE ROLE {role}; SET ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(enter)).execute(&mut connection).await.unwrap();
        let (code, message) = refusal(append_event(&mut connection, call).await);
        assert_eq!(code, "42501", "{message}");
        let grant =
            format!("RESET ROLE; GRANT SELECT, INSERT ON events TO {role}; SET ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut connection).await.unwrap();
        append_event(&mut connection, call).await.unwrap();
        let leave = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(leave)).execute(&mut connection).await.unwrap();
    })
    .await;
}

/// A read model contains exactly the committed events.
#[tokio::test(flavor = "multi_thread")]
async fn a_committed_event_is_published_and_applied_and_a_rolled_back_one_is_not() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let _projector = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;

        let mut connection = stack.postgres().await;
        let mut transaction = connection.begin().await.unwrap();
        let call = "'order', 'Tested', '{\"n\": 1}', '1'";
        append_event(&mut transaction, call).await.unwrap();
        transaction.rollback().await.unwrap();
        assert_eq!(count(&mut connection).await, (0, 0));
        let call = "'order', 'Tested', '{\"n\": 2}', '1'";
        let keyed = append_event(&mut connection, call).await.unwrap();
        let call = "'order', 'Tested', '{\"n\": 3}'";
        let single = append_event(&mut connection, call).await.unwrap();

        wait_for(stack, &keyed.1, "1").await;
        wait_for(stack, &single.1, "1").await;
        let total: String = sqlx::query_scalar("SELECT CAST(sum(total) AS CHAR) FROM tally")
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(total, "5.00");
    })
    .await;
}
