//! Replays and parked streams: a read model is never silently incomplete.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Daemon, Stack, eventually};
use serde_json::json;
use sqlx::Executor;
use tokio::time::sleep;

use crate::projector::{TALLY, applied, publish, tested, wait_for};

/// An event that the handler of `tally` cannot apply, because `n` is not a number.
fn poison() -> serde_json::Value {
    tested(&json!("none"))
}

/// Appends events to many streams at once, and marks all as published.
async fn history(stack: &Stack, streams: i64, events: i64) {
    let mut connection = stack.postgres().await;
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), 'order-' || s, v, 'Tested', jsonb_build_object('n', v)
         FROM generate_series(1, $2) v CROSS JOIN generate_series(1, $1) s
         ORDER BY v, s",
    )
    .bind(streams)
    .bind(events)
    .execute(&mut connection)
    .await
    .unwrap();
    published(stack).await;
}

/// Marks every event as published, as if all messages were lost.
async fn published(stack: &Stack) {
    let all = "UPDATE outbox SET processed_at = now() WHERE processed_at IS NULL";
    stack.postgres().await.execute(all).await.unwrap();
}

async fn total(stack: &Stack) -> i64 {
    let total: Option<i64> = sqlx::query_scalar("SELECT CAST(SUM(applied) AS SIGNED) FROM tally")
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap();
    total.unwrap_or_default()
}

async fn wait_for_total(stack: &Stack, events: i64) {
    eventually(&format!("{events} events are applied"), async || {
        (total(stack).await >= events).then_some(())
    })
    .await;
    let (rows, counted): (i64, i32) = sqlx::query_as(
        "SELECT (SELECT CAST(SUM(applied) AS SIGNED) FROM tally), applied FROM tally_total",
    )
    .fetch_one(&mut stack.mysql().await)
    .await
    .unwrap();
    assert_eq!((rows, i64::from(counted)), (events, events), "an event was applied twice");
}

/// A restarted projector continues an interrupted replay before it consumes the queue.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_replay_continues() {
    Stack::run(async |stack| {
        history(stack, 200, 50).await;
        // The sweeper must not run: it would apply the rest of the history.
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "1h");
        let projector = projector.env("PROJECTOR__PROJECTOR__BATCH_SIZE", "50");
        projector.clone().arg("migrate").succeed().await;
        for round in 1..=3 {
            let mut daemon = projector.start();
            eventually("some of the history is applied", async || {
                (total(stack).await > round * 500).then_some(())
            })
            .await;
            assert!(total(stack).await < 10_000, "the replay ended before the kill");
            daemon.kill().await;
        }
        let daemon = projector.start_ready().await;
        wait_for_total(stack, 10_000).await;
        drop(daemon);
    })
    .await;
}

/// Both instances find a new projection. One replays, and the other waits.
#[tokio::test(flavor = "multi_thread")]
async fn two_instances_replay_a_new_projection_once() {
    Stack::run(async |stack| {
        history(stack, 100, 30).await;
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "1h");
        projector.clone().arg("migrate").succeed().await;
        let daemons: [Daemon; 2] = [projector.start(), projector.start()];
        for daemon in &daemons {
            daemon.ready().await;
        }
        wait_for_total(stack, 3_000).await;
        for daemon in &daemons {
            let log = daemon.log();
            assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        }
    })
    .await;
}

/// A poison event in the history parks its stream. All other streams go live.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_in_the_history_holds_only_its_stream() {
    Stack::run(async |stack| {
        stack.append("order-bad", &[tested(&json!(1)), poison(), tested(&json!(3))]).await;
        history(stack, 20, 5).await;
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__BATCH_SIZE", "10");
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start();
        wait_for_total(stack, 101).await;
        assert_eq!(applied(stack, "order-bad").await.as_deref(), Some("1"));
        // The projector consumes the queue.
        stack.append("order-new", &[tested(&json!(1))]).await;
        publish(stack, "order-new", &[1]).await;
        wait_for(stack, "order-new", "1").await;
        assert!(daemon.log().contains("a stream is parked"));
    })
    .await;
}

/// The sweeper finds lost events at positions after a parked stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_stream_does_not_hide_later_losses() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        stack.append("order-bad", &[poison()]).await;
        // These are more events than the sweeper compares at once.
        let mut connection = stack.postgres().await;
        connection.execute("SELECT setval('events_position_seq', 50000)").await.unwrap();
        stack.append("order-1", &[tested(&json!(1))]).await;
        published(stack).await;
        wait_for(stack, "order-1", "1").await;
        assert_eq!(applied(stack, "order-bad").await, None);
        eventually("a metric counts the parked stream", async || {
            let parked = daemon.metric("projector_parked_streams{projection=\"tally\"}").await;
            ((parked - 1.0).abs() < 0.5).then_some(())
        })
        .await;
    })
    .await;
}

/// Other streams continue although there are more poison events than the prefetch limit.
#[tokio::test(flavor = "multi_thread")]
async fn many_poison_events_do_not_stop_the_others() {
    Stack::run(async |stack| {
        let projector = stack
            .projector(TALLY)
            .env("PROJECTOR__PROJECTOR__STORM_PERCENT", "100")
            .env("PROJECTOR__PROJECTOR__PREFETCH", "40");
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        for number in 0..30 {
            let events = [poison(), tested(&json!(2)), tested(&json!(3)), tested(&json!(4))];
            stack.append(&format!("order-bad{number}"), &events).await;
        }
        stack.append("order-1", &[tested(&json!(1)), tested(&json!(2))]).await;
        wait_for(stack, "order-1", "1,2").await;
        sleep(Duration::from_secs(2)).await;
        stack.append("order-1", &[tested(&json!(3))]).await;
        wait_for(stack, "order-1", "1,2,3").await;
        assert_eq!(total(stack).await, 3);
    })
    .await;
}

/// A modified copy of the test projection.
fn copy(stack: &Stack, change: impl Fn(&str, String) -> String) -> PathBuf {
    let to = stack.folder().join("projections");
    let from = harness::root().join(TALLY).join("tally");
    fs::create_dir_all(to.join("tally")).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = change(&name, fs::read_to_string(entry.path()).unwrap());
        fs::write(to.join("tally").join(name), text).unwrap();
    }
    to
}

/// A projection with an additional category lacks the history of that category, so it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn other_categories_are_refused() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let changed = copy(stack, |_, text| text.replace("[\"order\"]", "[\"order\", \"mail\"]"));
        let daemon = stack.projector(changed).start();
        eventually("readiness names the reason", async || {
            let (status, body) = daemon.get("/readyz").await?;
            let output =
                "its tables were built from the categories order, but projection.toml has mail, order";
            (status == 503 && body.contains(output)).then_some(())
        })
        .await;
    })
    .await;
}

/// A table without transactions cannot undo a failed batch, so a repetition would apply events twice.
#[tokio::test(flavor = "multi_thread")]
async fn tables_without_transactions_are_refused() {
    Stack::run(async |stack| {
        let changed = copy(stack, |name, text| match name {
            "tables.sql" => {
                let text = text.replace("VARCHAR(255)", "VARCHAR(100)");
                text.replace("MEDIUMTEXT     NOT NULL\n)", "TEXT NOT NULL\n) ENGINE = MyISAM")
            }
            _ => text,
        });
        let output = stack.projector(&changed).arg("check").fail(65).await;
        assert!(output.contains("tables.sql:2: table tally has the engine MyISAM"), "{output}");
        stack.projector(&changed).arg("migrate").succeed().await;
        let daemon = stack.projector(&changed).start();
        eventually("readiness names the reason", async || {
            let (status, body) = daemon.get("/readyz").await?;
            (status == 503 && body.contains("has the engine MyISAM")).then_some(())
        })
        .await;
    })
    .await;
}

/// The projector reports that an older event store was restored, also if an earlier release moved the checkpoint: then
/// only its position shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_older_event_store_is_detected() {
    Stack::run(async |stack| {
        history(stack, 3, 3).await;
        stack.projector(TALLY).arg("migrate").succeed().await;
        let mut daemon = stack.projector(TALLY).start_ready().await;
        wait_for_total(stack, 9).await;
        eventually("the checkpoint reaches the last event", async || {
            let series = "projector_checkpoint_position{projection=\"tally\"}";
            (daemon.metric(series).await > 8.5).then_some(())
        })
        .await;
        daemon.kill().await;
        let forget = "UPDATE tally__checkpoint SET landmark_position = NULL, landmark_id = NULL";
        stack.mysql().await.execute(forget).await.unwrap();
        crate::projector_divergence::lose(stack, 5).await;
        daemon.restart();
        eventually("readiness names the reason", async || {
            let (status, body) = daemon.get("/readyz").await?;
            (status == 503 && body.contains("an older event store was restored")).then_some(())
        })
        .await;
    })
    .await;
}
