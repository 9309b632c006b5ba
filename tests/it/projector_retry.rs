//! Decisions about parked streams: retry and skip.

use std::time::Duration;

use harness::{Stack, event, eventually, write_projection};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};
use tokio::time::sleep;

use crate::projector::{TALLY, tested, wait_for, with_projector};
use crate::projector_rebuild::drop_databases;

/// An operator skips an event. The rest of the stream is applied, and the audit table keeps the
/// reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_can_be_skipped() {
    with_projector(async |stack, _| {
        let _relay = stack.relay().start();
        let poison = event("Tested", &json!({}));
        stack.append("order-1", &[tested(&json!(1)), poison, tested(&json!(3))]).await;
        let parked = |arguments: &[&str]| {
            stack.projector(TALLY).arg("parked").args(arguments.iter().copied())
        };
        eventually("the stream is listed", async || {
            parked(&["list", "tally"]).succeed().await.contains("order-1").then_some(())
        })
        .await;
        // `discard` is the hidden alias of `skip`.
        let output = parked(&["discard", "tally", "order-9", "--reason", "x"]).fail(65).await;
        assert!(output.contains("stream order-9 is not parked"), "{output}");
        parked(&["skip", "tally", "order-1", "--reason", "made by a test"]).succeed().await;
        wait_for(stack, "order-1", "1,3").await;
        let audit: (String, String, u64) =
            sqlx::query_as("SELECT action, reason, version FROM projector_audit")
                .fetch_one(&mut stack.mysql().await)
                .await
                .unwrap();
        assert_eq!(audit, ("skip".to_owned(), "made by a test".to_owned(), 2));
        let event_id: uuid::Uuid = sqlx::query_scalar(
            "SELECT event_id FROM events WHERE stream_id = 'order-1' AND stream_version = 2",
        )
        .fetch_one(&mut stack.postgres().await)
        .await
        .unwrap();
        for table in ["projector_audit", "projector_skips"] {
            let readable = AssertSqlSafe(format!("SELECT event_uuid FROM {table}"));
            let found: String =
                sqlx::query_scalar(readable).fetch_one(&mut stack.mysql().await).await.unwrap();
            assert_eq!(found, event_id.to_string(), "{table} shows the id of the event");
        }
    })
    .await;
}

/// The slower of two commands that skip the same event changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_skipped_once() {
    with_projector(async |stack, _| {
        let _relay = stack.relay().start();
        let poison = || event("Tested", &json!({}));
        let events = [tested(&json!(1)), poison(), tested(&json!(3)), poison()];
        stack.append("order-1", &events).await;
        let parked = |arguments: &[&str]| {
            stack.projector(TALLY).arg("parked").args(arguments.iter().copied())
        };
        eventually("the stream is listed", async || {
            parked(&["list", "tally"]).succeed().await.contains("order-1").then_some(())
        })
        .await;
        let skip = parked(&["skip", "tally", "order-1", "--reason", "made by a test"]);
        let slow = skip.clone().env("FAILPOINTS", "parked::before-batch=sleep(4000)");
        let (output, ()) = tokio::join!(slow.fail(65), async {
            sleep(Duration::from_secs(2)).await;
            skip.succeed().await;
        });
        assert!(output.contains("order-1 is no longer parked at version 2"), "{output}");
        wait_for(stack, "order-1", "1,3").await;
    })
    .await;
}

/// When the event store lacks an event after the parked one, a skip changes nothing and names the
/// missing version.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_names_an_event_that_the_event_store_lacks() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.clone().start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let poison = event("Tested", &json!({}));
        stack.append("order-1", &[poison, tested(&json!(2)), tested(&json!(3))]).await;
        let list = projector.clone().args(["parked", "list", "tally"]);
        let is_listed = async || {
            let listed = list.clone().succeed().await;
            listed.contains("order-1  version 1").then_some(())
        };
        eventually("the stream is parked", is_listed).await;
        let mut postgres = stack.postgres().await;
        // Otherwise a trigger refuses to delete events.
        postgres.execute("ALTER TABLE events DISABLE TRIGGER USER").await.unwrap();
        postgres.execute("DELETE FROM events WHERE stream_version = 2").await.unwrap();
        let skip = ["parked", "skip", "tally", "order-1", "--reason", "made by a test"];
        let output = projector.args(skip).fail(1).await;
        assert!(output.contains("lacks version 2 of stream order-1"), "{output}");
        eventually("the stream is still parked", is_listed).await;
    })
    .await;
}

/// A retry must stop when a rebuild from other files swaps the tables meanwhile. Its handlers do
/// not fit the new tables.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_does_not_apply_previous_handlers_to_a_rebuilt_read_model() {
    const PARKED: i64 = 200;
    Stack::run(async |stack| {
        // Version 1 of the handler adds 1 for each event, version 2 adds 10.
        let [first, second] = ["one", "ten"].map(|name| stack.folder().join(name));
        for (folder, steps) in [(&first, 1), (&second, 10)] {
            let tables = "CREATE TABLE steps (stream_id VARCHAR(255) CHARACTER SET utf8mb4
                          COLLATE utf8mb4_0900_bin PRIMARY KEY, steps INT NOT NULL)";
            let handler = format!(
                "INSERT INTO steps (stream_id, steps) VALUES (:stream_id, {steps} * :data.n)
                 ON DUPLICATE KEY UPDATE steps = steps + {steps} * :data.n"
            );
            write_projection(folder, "steps", &[("tables.sql", tables), ("Tested.sql", &handler)]);
        }
        let [first, second] = [first, second].map(|folder| stack.projector(&folder));
        first.clone().arg("migrate").succeed().await;
        let first = first.env("PROJECTOR__PROJECTOR__STORM_STREAMS", "1000000");
        let first = first.env("PROJECTOR__PROJECTOR__STORM_PERCENT", "100");
        let mut daemon = first.clone().start_ready().await;
        let _relay = stack.relay().start_ready().await;
        // No event satisfies this constraint, so all streams are parked.
        let events = "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
            SELECT gen_random_uuid(), 'order-' || s, v, 'Tested', '{\"n\": 1}'
            FROM generate_series(1, $1) s, generate_series(1, 2) v ORDER BY v, s";
        let lock = "ALTER TABLE steps ADD CONSTRAINT nothing CHECK (steps < 0)";
        stack.mysql().await.execute(lock).await.unwrap();
        sqlx::query(events).bind(PARKED).execute(&mut stack.postgres().await).await.unwrap();
        let parked = async || {
            sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM steps__parked")
                .fetch_one(&mut stack.mysql().await)
                .await
                .unwrap()
        };
        eventually("all streams are parked", async || (parked().await == PARKED).then_some(()))
            .await;
        daemon.terminate().await;
        let unlock = "ALTER TABLE steps DROP CHECK nothing";
        stack.mysql().await.execute(unlock).await.unwrap();

        // The delay keeps the retry running until the swap.
        let retry = first.clone().env("FAILPOINTS", "parked::before-batch=sleep(20)");
        let retry = retry.args(["parked", "retry", "steps", "--all"]);
        let rebuild = async {
            eventually("some streams are retried", async || {
                (parked().await < PARKED - 10).then_some(())
            })
            .await;
            second.clone().args(["rebuild", "start", "steps", "--allow-parked"]).succeed().await
        };
        let ((ended, output), _) = tokio::join!(retry.try_run(), rebuild);
        assert!(!ended && output.contains("these files of steps are not in service"), "{output}");
        second.clone().args(["verify", "steps"]).succeed().await;
        let right: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM steps WHERE steps = 20")
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(right, PARKED);
        drop_databases(stack).await;
    })
    .await;
}
