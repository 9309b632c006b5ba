//! Events that cannot be published now: the reaction of the relay, and the decisions of operators.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::{Stack, Tap, event, eventually};
use serde_json::{Value, json};
use sqlx::Executor;

use crate::relay::{all_processed, fill, unprocessed};

/// Runs a command that prints JSON.
async fn ask(stack: &Stack, arguments: &[&str]) -> Value {
    let command = arguments.iter().fold(stack.relay(), |command, word| command.arg(*word));
    serde_json::from_str(&command.arg("--json").succeed().await).unwrap()
}

async fn parked(stack: &Stack) -> Vec<Value> {
    ask(stack, &["parked", "list"]).await.as_array().unwrap().clone()
}

/// Waits until one stream is parked. Returns the id of its event in the outbox.
async fn parked_event(stack: &Stack) -> String {
    let streams = eventually("a stream is parked", async || {
        Some(parked(stack).await).filter(|streams| streams.len() == 1)
    })
    .await;
    streams[0]["id"].to_string()
}

async fn holds(stack: &Stack) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM outbox_holds")
        .fetch_one(&mut stack.postgres().await)
        .await
        .unwrap()
}

/// A poison event parks only its stream. The stream continues after an operator skips the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_among_200_streams_parks_its_own_until_it_is_skipped() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let relay = stack
            .relay()
            .env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "4000")
            .env("OUTBOX_RELAY__RELAY__MAX_ATTEMPTS", "3")
            .env("OUTBOX_RELAY__RELAY__RETRY_MIN", "20ms")
            .start_ready()
            .await;
        let poison = event("Poison", &json!({ "text": "x".repeat(5_000) }));
        stack.append("order-7", &[event("A", &json!({})), poison, event("B", &json!({}))]).await;
        fill(stack, "parcel", 199, 3).await;
        let seen = tap.wait_for(199 * 3 + 1).await;
        assert_eq!(seen.iter().filter(|message| message.stream_id == "order-7").count(), 1);
        let id = parked_event(stack).await;
        assert_eq!(unprocessed(stack).await, 2);
        eventually("the gauge counts the parked stream", async || {
            (relay.metric("outbox_relay_parked_streams").await > 0.0).then_some(())
        })
        .await;
        let shown = ask(stack, &["parked", "show", &id]).await;
        assert_eq!(shown["stream_key"], "order-7");
        assert_eq!(shown["stream_version"], 2);
        assert_eq!(shown["attempts"], 3);
        assert_eq!(shown["events"], 2);
        assert!(shown["last_error"].as_str().unwrap().contains("and 4000 are allowed"), "{shown}");

        // Later events of the parked stream wait.
        stack.append("order-7", &[event("C", &json!({}))]).await;
        stack.append("order-8", &[event("A", &json!({}))]).await;
        tap.wait_for(199 * 3 + 2).await;
        eventually("the later event waits", async || {
            (ask(stack, &["parked", "show", &id]).await["events"] == 3).then_some(())
        })
        .await;

        stack.relay().arg("parked").arg("skip").arg(&id).fail(2).await;
        let skip = stack.relay().arg("parked").arg("skip").arg(&id);
        skip.env("USER", "zoe").arg("--reason").arg("a test of the parser").succeed().await;
        let seen = tap.wait_for(199 * 3 + 4).await;
        let versions: Vec<_> = seen
            .iter()
            .filter(|message| message.stream_id == "order-7")
            .map(|message| message.version)
            .collect();
        assert_eq!(versions, [1, 3, 4]);
        all_processed(stack).await;
        assert!(parked(stack).await.is_empty());
        let (actor, action, reason): (String, String, String) =
            sqlx::query_as("SELECT actor, action, reason FROM outbox_audit")
                .fetch_one(&mut stack.postgres().await)
                .await
                .unwrap();
        assert_eq!([&*actor, &*action, &*reason], ["zoe", "skip", "a test of the parser"]);
        stack
            .relay()
            .arg("parked")
            .arg("skip")
            .arg(&id)
            .arg("--reason")
            .arg("again")
            .fail(65)
            .await;
    })
    .await;
}

/// A parked stream continues after its cause is fixed and an operator retries it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retried_event_is_published() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let mut relay = stack
            .relay()
            .env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "4000")
            .env("OUTBOX_RELAY__RELAY__MAX_ATTEMPTS", "1")
            .start_ready()
            .await;
        let large = event("Large", &json!({ "text": "x".repeat(5_000) }));
        stack.append("order-1", &[event("A", &json!({})), large, event("B", &json!({}))]).await;
        parked_event(stack).await;
        relay.terminate().await;
        let _relay = stack.relay().start_ready().await;
        // A larger limit alone does not resume a parked stream.
        stack.append("order-2", &[event("A", &json!({}))]).await;
        tap.wait_for(2).await;
        assert_eq!(parked(stack).await.len(), 1);
        stack.relay().arg("parked").arg("retry").arg("--all").succeed().await;
        let seen = tap.wait_for(4).await;
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
        all_processed(stack).await;
        stack.relay().arg("parked").arg("retry").arg("123456").fail(65).await;
    })
    .await;
}

/// An operator retries the streams that wait for one cause, and no others, and sees before how many there are.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_streams_are_retried_by_their_cause() {
    Stack::run(async |stack| {
        let mut relay = stack
            .relay()
            .env("OUTBOX_RELAY__RELAY__RETRY_MIN", "60s")
            .env("OUTBOX_RELAY__RELAY__RETRY_MAX", "60s")
            .env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "4000")
            .env("OUTBOX_RELAY__RELAY__MAX_ATTEMPTS", "1")
            .start_ready()
            .await;
        for stream in ["mail-1", "mail-2", "mail-3"] {
            stack.append(stream, &[event("Sent", &json!({}))]).await;
        }
        stack.append("mail-4", &[event("Opened", &json!({}))]).await;
        stack.append("order-1", &[event("Placed", &json!({}))]).await;
        let large = json!({ "text": "x".repeat(5_000) });
        stack.append("order-2", &[event("Placed", &large)]).await;
        eventually("all streams wait", async || (holds(stack).await == 6).then_some(())).await;
        relay.terminate().await;
        let later = "UPDATE outbox_holds SET until = now() + interval '1 h' WHERE NOT blocked";
        stack.postgres().await.execute(later).await.unwrap();

        let command = |verb: &str, filter: &[&str]| {
            stack.relay().args(["parked", verb]).args(filter.iter().copied()).arg("--json")
        };
        let listed = async |filter: &[&str]| {
            let list = command("list", filter).succeed().await;
            serde_json::from_str::<Vec<Value>>(&list).unwrap().len()
        };
        let retried = async |filter: &[&str]| {
            let report = command("retry", filter).succeed().await;
            serde_json::from_str::<Value>(&report).unwrap()["streams"].as_i64().unwrap()
        };
        for (filter, streams) in [
            (&["--reason", "unroutable"][..], 5),
            (&["--reason", "too_large"], 1),
            (&["--reason", "nacked"], 0),
            (&["--key", "mail.Sent"], 3),
            (&["--category", "mail"], 4),
            (&["--category", "order", "--reason", "unroutable"], 1),
            (&["--error", "relay.max_message_bytes"], 1),
        ] {
            assert_eq!(listed(filter).await, usize::try_from(streams).unwrap(), "{filter:?}");
            assert_eq!(retried(&[filter, &["--dry-run"]].concat()).await, streams, "{filter:?}");
        }
        assert_eq!((listed(&[]).await, listed(&["--all"]).await), (1, 6));
        assert_eq!(retried(&["--all", "--dry-run"]).await, 1);
        assert_eq!(audited(stack).await, 0, "a dry run changes nothing");

        let tap = Tap::open(stack).await;
        relay.restart();
        relay.ready().await;
        let text = stack.relay().args(["parked", "retry", "--key", "mail.Sent"]).succeed().await;
        assert_eq!(text, "3 streams match\n3 streams are retried now\n");
        let keys = tap.wait_for(3).await.into_iter().map(|seen| seen.stream_id);
        let keys: BTreeSet<_> = keys.collect();
        assert_eq!(keys, ["mail-1", "mail-2", "mail-3"].map(String::from).into());
        assert_eq!((holds(stack).await, audited(stack).await), (3, 3));
        assert_eq!(retried(&["--category", "order"]).await, 2);
        tap.wait_for(4).await;
        eventually("the large event is parked again", async || {
            (listed(&["--reason", "too_large"]).await == 1 && holds(stack).await == 2).then_some(())
        })
        .await;
        assert_eq!(retried(&["--error", "no queue is bound"]).await, 1);
        tap.wait_for(5).await;
        assert_eq!(tap.seen().len(), 5);
    })
    .await;
}

async fn audited(stack: &Stack) -> i64 {
    let count = "SELECT count(*) FROM outbox_audit WHERE action = 'retry'";
    sqlx::query_scalar(count).fetch_one(&mut stack.postgres().await).await.unwrap()
}

/// The setting `discard_unroutable` decides by routing key whether an unroutable event is dropped or
/// held.
#[tokio::test(flavor = "multi_thread")]
async fn unroutable_events_are_dropped_or_held_by_their_routing_key() {
    Stack::run(async |stack| {
        let _relay = stack
            .relay()
            .env("OUTBOX_RELAY__RELAY__DISCARD_UNROUTABLE", "audit.#, *.Ping")
            .start_ready()
            .await;
        stack.append("audit-1", &[event("Logged", &json!({}))]).await;
        stack.append("order-1", &[event("Ping", &json!({})), event("Placed", &json!({}))]).await;
        stack.append("order-2", &[event("Placed", &json!({})), event("Ping", &json!({}))]).await;
        let key = eventually("both orders wait", async || {
            let status = stack.relay().arg("status").arg("--json").output().await.stdout;
            let status: Value = serde_json::from_slice(&status).ok()?;
            Some(status["unroutable"][0].clone()).filter(|key| key["streams"] == 2)
        })
        .await;
        assert_eq!((&key["routing_key"], &key["streams"]), (&json!("order.Placed"), &json!(2)));
        assert_eq!(key["events"], 3);
        assert_eq!(unprocessed(stack).await, 3);
        let text = stack.relay().arg("status").fail(1).await;
        let reason = "no queue is bound for order.Placed: 3 events of 2 streams wait for one";
        assert!(text.contains(reason), "{text}");
        let tap = Tap::open(stack).await;
        tap.wait_for(3).await;
        all_processed(stack).await;
    })
    .await;
}

/// A delayed event is published when it is due and in the order of its stream. It delays no other
/// stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_event_is_published_when_it_is_due() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let _relay = stack.relay().start_ready().await;
        let mut connection = stack.postgres().await;
        // The delays of one stream: none, 2 s, none, 4 s, none, 1 s. The other stream has none.
        connection
            .execute(
                "INSERT INTO outbox (event_id, stream_id, stream_version, event_type, routing_key,
                                     payload, available_at)
                 SELECT gen_random_uuid(), stream, version, 'A', 'mail.A', '{}',
                        now() + delay * interval '1 s'
                 FROM (VALUES ('mail-1', 1, NULL), ('mail-1', 2, 2), ('mail-1', 3, NULL),
                              ('mail-1', 4, 4), ('mail-1', 5, NULL), ('mail-1', 6, 1),
                              ('mail-2', 1, NULL))
                      AS row (stream, version, delay)",
            )
            .await
            .unwrap();
        connection
            .execute(
                "INSERT INTO outbox (event_id, event_type, routing_key, payload, available_at)
                 VALUES (gen_random_uuid(), 'A', 'mail.A', '{}', now() + interval '3 s')",
            )
            .await
            .unwrap();
        let due: Vec<(i64, f64)> = sqlx::query_as(
            "SELECT id, extract(epoch FROM available_at)::float8 FROM outbox
             WHERE available_at IS NOT NULL",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        assert_eq!(due.len(), 4);
        let seen = tap.wait_for(2).await;
        assert_eq!(seen.iter().filter(|message| message.version == 1).count(), 2);
        let seen = tap.wait_for(7).await;
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
        all_processed(stack).await;
        assert_eq!(holds(stack).await, 0);
        for (id, due) in due {
            let published: f64 = sqlx::query_scalar(
                "SELECT extract(epoch FROM processed_at)::float8 FROM outbox WHERE id = $1",
            )
            .bind(id)
            .fetch_one(&mut connection)
            .await
            .unwrap();
            assert!(published >= due, "row {id} was published {} s early", due - published);
        }
        assert_eq!(tap.seen().len(), 7, "an event was published twice");
    })
    .await;
}

/// A stream stays in order when an event fails after a delayed one, or is delayed after a failed one.
#[tokio::test(flavor = "multi_thread")]
async fn delays_and_failures_of_one_stream_keep_its_order() {
    Stack::run(async |stack| {
        let _relay = stack.relay().start_ready().await;
        stack
            .postgres()
            .await
            .execute(
                "INSERT INTO outbox (event_id, stream_id, stream_version, event_type, routing_key,
                                     payload, available_at)
                 SELECT gen_random_uuid(), 'mail-' || stream, version, 'A', 'mail.A', '{}',
                        CASE WHEN (version + stream) % 3 = 0
                             THEN now() + version * interval '200 ms' END
                 FROM generate_series(1, 12) version, generate_series(1, 20) stream
                 ORDER BY version",
            )
            .await
            .unwrap();
        // The queue does not exist for a while.
        eventually("all streams wait", async || (holds(stack).await == 20).then_some(())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tap = Tap::open(stack).await;
        let seen = tap.wait_for(240).await;
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
        all_processed(stack).await;
        eventually("no hold is left", async || (holds(stack).await == 0).then_some(())).await;
    })
    .await;
}

/// PostgreSQL refuses malformed rows. A row inserted as already published or held would never be
/// published.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_rows_are_refused_at_insert() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let defaults = [
            ("event_id", "gen_random_uuid()"),
            ("event_type", "'A'"),
            ("routing_key", "'mail.A'"),
            ("payload", "'{}'"),
        ];
        for (column, value, code) in [
            ("held", "true", "ES009"),
            ("processed_at", "now()", "ES009"),
            ("event_id", "NULL", "23502"),
            ("event_id", "'00000000-0000-0000-0000-000000000000'", "23514"),
            ("event_id", "'no-uuid'", "22P02"),
            ("event_type", "NULL", "23502"),
            ("event_type", "'a b'", "23514"),
            ("routing_key", "NULL", "23502"),
            ("routing_key", "''", "23514"),
            ("routing_key", "'mail.#'", "23514"),
            ("routing_key", "repeat('x', 256)", "23514"),
            ("payload", "NULL", "23502"),
            ("payload", "'{'", "22P02"),
            ("metadata", "'[]'", "23514"),
            ("metadata", "jsonb_build_object('a', repeat('x', 40000))", "23514"),
            ("stream_id", "'no id.'", "23514"),
            ("stream_version", "1", "23514"),
            ("schema_version", "0", "23514"),
            ("occurred_at", "'infinity'", "23514"),
            ("available_at", "'infinity'", "23514"),
            ("lane", "1", "428C9"),
            ("id", "1", "428C9"),
        ] {
            let mut row: Vec<_> = defaults.iter().filter(|(name, _)| *name != column).collect();
            let given = (column, value);
            row.push(&given);
            let columns: Vec<_> = row.iter().map(|(name, _)| *name).collect();
            let values: Vec<_> = row.iter().map(|(_, value)| *value).collect();
            let sql = format!(
                "INSERT INTO outbox ({}) VALUES ({})",
                columns.join(", "),
                values.join(", ")
            );
            let error = connection.execute(sqlx::AssertSqlSafe(sql.clone())).await.unwrap_err();
            let found = error.as_database_error().and_then(|error| error.code().map(String::from));
            assert_eq!(found.as_deref(), Some(code), "{sql}: {error}");
        }
    })
    .await;
}
