//! The relay's commands and background tasks.

use std::time::Duration;

use harness::{Stack, Tap, event, eventually};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::sleep;
use url::Url;

use crate::relay::{all_processed, fill};

async fn count(stack: &Stack, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&mut stack.postgres().await).await.unwrap()
}

/// Operator commands need only PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_needs_no_broker() {
    Stack::run(async |stack| {
        fill(stack, "order", 5, 4).await;
        fill(stack, "mail", 2, 1).await;
        let mut other = stack.postgres().await;
        let mut open = other.begin().await.unwrap();
        open.execute("SELECT append_to_stream('order-6', 0,
            '[{\"event_id\": \"018f4e3a-0000-7000-8000-000000000001\", \"type\": \"A\", \"data\": {}}]')")
            .await
            .unwrap();
        let status = stack.relay().env("AMQP_URL", "amqp://127.0.0.1:1").arg("status");
        let output = eventually("the open writer is old enough to be reported", async || {
            let output: Value =
                serde_json::from_str(&status.clone().arg("--json").fail(3).await).unwrap();
            (!output["open_writers"].as_array().unwrap().is_empty()).then_some(output)
        })
        .await;
        assert_eq!(output["pending"], 22);
        assert_eq!(
            output["categories"],
            json!([{ "name": "order", "events": 20 }, { "name": "mail", "events": 2 }])
        );
        let lanes: i64 =
            output["lanes"].as_array().unwrap().iter().map(|lane| lane["events"].as_i64().unwrap()).sum();
        assert_eq!(lanes, 22);
        assert!(output["oldest_age_seconds"].as_f64().unwrap() > 0.0);
        let text = status.fail(3).await;
        assert!(text.contains("no relay is connected"), "{text}");
        assert!(text.contains("pending by category: order 20, mail 2"), "{text}");
        assert!(text.contains("a transaction holds up the fence"), "{text}");
        open.rollback().await.unwrap();
    })
    .await;
}

/// `reconcile` finds events that the outbox lacks, and `republish` publishes them.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_missing_from_the_outbox_is_found_and_published_again() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        fill(stack, "order", 10, 5).await;
        let reconcile = stack.relay().arg("reconcile").arg("--json");
        let output: Value = serde_json::from_str(&reconcile.succeed().await).unwrap();
        assert_eq!([&output["events"], &output["pending"], &output["missing"]], [50, 50, 0]);

        let mut connection = stack.postgres().await;
        connection.execute("DELETE FROM outbox WHERE stream_id = 'order-3'").await.unwrap();
        let _relay = stack.relay().start_ready().await;
        tap.wait_for(45).await;
        all_processed(stack).await;
        let output = reconcile.fail(65).await;
        assert!(output.contains("5 events are not in the outbox"), "{output}");
        let output = stack.relay().arg("reconcile").fail(65).await;
        assert!(
            output.contains("A, version 1 of order-3")
                || output.contains("Tested, version 1 of order-3"),
            "{output}"
        );

        stack.relay().arg("republish").fail(64).await;
        let republish = stack.relay().arg("republish").arg("--stream").arg("order-3");
        let output = republish.clone().arg("--dry-run").succeed().await;
        assert_eq!(output.trim(), "5 events would be published again");
        assert_eq!(tap.seen().len(), 45);
        republish.succeed().await;
        let seen = tap.wait_for(50).await;
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
        all_processed(stack).await;
        let output: Value = serde_json::from_str(&reconcile.succeed().await).unwrap();
        assert_eq!([&output["events"], &output["processed"], &output["missing"]], [50, 50, 0]);

        // A second republish selects events by type and position, at a limited rate.
        let again = stack.relay().arg("republish").arg("--type").arg("Tested");
        let again = again.arg("--after").arg("10").arg("--rate").arg("100").arg("--json");
        let output: Value = serde_json::from_str(&again.succeed().await).unwrap();
        assert_eq!(output["events"], 40);
        eventually("the events are published again", async || {
            (tap.seen().len() == 90).then_some(())
        })
        .await;
        let audited = "SELECT count(*) FROM outbox_audit WHERE action = 'republish'";
        assert_eq!(count(stack, audited).await, 2);
    })
    .await;
}

/// The cleaner deletes published rows after the retention time, and keeps unprocessed rows.
#[tokio::test(flavor = "multi_thread")]
async fn published_rows_are_deleted_after_their_retention() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let retention = |text: &str| stack.relay().env("OUTBOX_RELAY__RELAY__RETENTION", text);
        let mut relay = retention("1h").start_ready().await;
        // These are more rows than a page of the cleaner.
        fill(stack, "order", 500, 6).await;
        tap.wait_for(3_000).await;
        all_processed(stack).await;
        relay.terminate().await;
        // An unprocessed row is kept, however old it is.
        stack
            .postgres()
            .await
            .execute("UPDATE outbox SET processed_at = NULL, held = true WHERE id = 2500")
            .await
            .unwrap();
        let mut relay = retention("1s").start_ready().await;
        eventually("only unprocessed rows are left", async || {
            (count(stack, "SELECT count(*) FROM outbox").await == 1).then_some(())
        })
        .await;
        assert!(relay.metric("outbox_relay_deleted_events_total").await >= 2_999.0);
        relay.terminate().await;

        let _relay = retention("0s").start_ready().await;
        stack.append("order-1", &[event("A", &json!({})), event("B", &json!({}))]).await;
        tap.wait_for(3_002).await;
        eventually("processed rows are deleted immediately", async || {
            (count(stack, "SELECT count(*) FROM outbox").await == 1).then_some(())
        })
        .await;
    })
    .await;
}

/// An append wakes a relay whose pause is a minute. So does an append after the relay has lost and
/// restored its listener.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_relay_is_woken_by_an_append() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let relay = stack
            .relay()
            .env("OUTBOX_RELAY__RELAY__NOTIFY", "true")
            .env("OUTBOX_RELAY__RELAY__POLL_MAX", "1m");
        let _relays = [relay.start_ready().await, relay.start_ready().await];
        let sleeps = "SELECT last_value FROM outbox_sleeper";
        let asleep = async || {
            eventually("the relay sleeps", async || {
                (count(stack, sleeps).await == 1).then_some(())
            })
            .await;
        };
        for number in 1..=5 {
            asleep().await;
            stack.append("order-1", &[event("A", &json!({}))]).await;
            tap.wait_for(number).await;
        }
        stack
            .postgres()
            .await
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'outbox-relay listener'
                   AND datname = current_database()",
            )
            .await
            .unwrap();
        let listening = "SELECT count(*) FROM pg_stat_activity
                         WHERE application_name = 'outbox-relay listener'
                           AND datname = current_database()";
        eventually("both relays listen again", async || {
            (count(stack, listening).await == 2).then_some(())
        })
        .await;
        asleep().await;
        stack.append("order-1", &[event("A", &json!({}))]).await;
        tap.wait_for(6).await;
        all_processed(stack).await;
    })
    .await;
}

/// An event that commits late is published: the floor must not rise above an assigned id that is not
/// committed yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_committed_late_is_published() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let _relay = stack.relay().start_ready().await;
        let mut other = stack.postgres().await;
        let mut late = other.begin().await.unwrap();
        let events = json!([event("A", &json!({}))]);
        harness::append(&mut late, "order-1", None, &events).await.unwrap();
        for number in 2..200 {
            stack.append(&format!("order-{number}"), &[event("A", &json!({}))]).await;
        }
        tap.wait_for(198).await;
        // The floor moves several times during this pause.
        sleep(Duration::from_millis(3_500)).await;
        late.commit().await.unwrap();
        tap.wait_for(199).await;
        all_processed(stack).await;
    })
    .await;
}

/// The rights that `grants` gives are enough for each task, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn the_granted_rights_are_enough() {
    Stack::run(async |stack| {
        let mut owner = stack.postgres().await;
        let mut urls = Vec::new();
        for (role, tasks) in [
            ("application", &["--as", "append", "--as", "integration"][..]),
            ("relay", &["--as", "relay"]),
            ("projector", &["--as", "projector"]),
        ] {
            // A role belongs to the whole server, so its name must be unique.
            let name = format!("{}_{role}", stack.name());
            let create = format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'");
            owner.execute(AssertSqlSafe(create)).await.unwrap();
            let grants =
                stack.relay().args(["grants", "--role", &name]).args(tasks.iter().copied());
            assert!(grants.succeed().await.contains(&format!("TO \"{name}\";")), "it is printed");
            grants.arg("--apply").succeed().await;
            let mut url = Url::parse(&stack.postgres_url).unwrap();
            url.set_username(&name).unwrap();
            url.set_password(Some("secret")).unwrap();
            urls.push((name, url.to_string()));
        }
        let [(_, application), (_, relay), (_, projector)] = &urls[..] else { unreachable!() };

        stack.projector("tests/projections/tally").arg("migrate").succeed().await;
        let follow = stack.projector("tests/projections/tally").env("EVENT_STORE_URL", projector);
        let follower = follow.start_ready().await;
        let publish = stack.relay().env("EVENT_STORE_URL", relay);
        let publish = publish.env("OUTBOX_RELAY__RELAY__NOTIFY", "true");
        let publish = publish.env("OUTBOX_RELAY__RELAY__RETENTION", "1s");
        let daemon = publish.start_ready().await;
        let mut writer = PgConnection::connect(application).await.unwrap();
        let events =
            json!([event("Tested", &json!({ "n": 1 })), event("Tested", &json!({ "n": 2 }))]);
        harness::append(&mut writer, "order-1", Some(0), &events).await.unwrap();
        writer
            .execute(
                "INSERT INTO outbox (event_id, event_type, routing_key, payload)
                 VALUES (gen_random_uuid(), 'A', 'nowhere.A', '{}')",
            )
            .await
            .unwrap();
        eventually("the events are applied and deleted, and the other one waits", async || {
            let applied: Option<String> = sqlx::query_scalar("SELECT versions FROM tally")
                .fetch_optional(&mut stack.mysql().await)
                .await
                .unwrap();
            let left = count(stack, "SELECT count(*) FROM outbox").await;
            (applied.as_deref() == Some("1,2") && left == 1).then_some(())
        })
        .await;
        let output = publish.clone().arg("parked").arg("list").arg("--all").arg("--json");
        let waiting: Value = serde_json::from_str(&output.succeed().await).unwrap();
        let id = waiting[0]["id"].to_string();
        publish.clone().arg("status").fail(1).await;
        publish.clone().arg("parked").arg("retry").arg(&id).succeed().await;
        let skip = publish.clone().arg("parked").arg("skip").arg(&id);
        skip.arg("--reason").arg("nobody wants it").succeed().await;
        publish.clone().arg("reconcile").arg("--since").arg("2000-01-01T00:00:00Z").succeed().await;
        publish.arg("republish").arg("--stream").arg("order-1").succeed().await;
        let (_, ready) = daemon.get("/readyz").await.unwrap();
        assert!(ready.contains("\"ready\": true") || ready.contains("\"ready\":true"), "{ready}");

        // The rights are not more than sufficient.
        for forbidden in
            ["DELETE FROM events", "UPDATE outbox SET held = true", "SELECT * FROM outbox"]
        {
            let error = writer.execute(forbidden).await.unwrap_err();
            let code = error.as_database_error().and_then(|error| error.code().map(String::from));
            assert_eq!(code.as_deref(), Some("42501"), "{forbidden}");
        }
        drop(writer);
        drop((daemon, follower));
        for (name, _) in &urls {
            let sql = format!("DROP OWNED BY {name}; DROP ROLE {name}");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut owner).await.unwrap();
        }
    })
    .await;
}
