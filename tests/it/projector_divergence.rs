//! The event store loses events that read models have applied: in a failover, a restore or a crash.

use broker::Outcome;
use domain_events::Message;
use harness::{Daemon, Program, Stack, event, eventually, write_projection};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use crate::projector::{TALLY, applied, publish, publisher, stored, tested, wait_for};

/// A projection named `tally` whose rows each belong to one stream, and one of another category.
fn projector(stack: &Stack) -> Program {
    let folder = stack.folder().join("projections");
    let tables = "CREATE TABLE tally (
        stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
        versions MEDIUMTEXT NOT NULL)";
    let handler = "INSERT INTO tally (stream_id, versions) VALUES (:stream_id, :stream_version)
        ON DUPLICATE KEY UPDATE versions = CONCAT(versions, ',', :stream_version)";
    write_projection(&folder, "tally", &[("tables.sql", tables), ("Tested.sql", handler)]);
    let tables = "CREATE TABLE mails (stream_id VARCHAR(255) PRIMARY KEY)";
    let handler = "INSERT INTO mails (stream_id) VALUES (:stream_id)";
    let category = "categories = [\"mail\"]";
    let files = [("projection.toml", category), ("tables.sql", tables), ("Tested.sql", handler)];
    write_projection(&folder, "mails", &files);
    stack.projector(folder)
}

async fn started(stack: &Stack) -> Daemon {
    let projector = projector(stack);
    projector.clone().arg("migrate").succeed().await;
    projector.start_ready().await
}

/// Marks every event as published.
async fn published(stack: &Stack) {
    let all = "UPDATE outbox SET processed_at = now() WHERE processed_at IS NULL";
    stack.postgres().await.execute(all).await.unwrap();
}

/// Removes all events behind a position, as a failover does, and lets their positions be given out again.
pub(crate) async fn lose(stack: &Stack, behind: i64) {
    let sql = format!(
        "ALTER TABLE events DISABLE TRIGGER USER;
         DELETE FROM outbox WHERE position > {behind};
         DELETE FROM events WHERE position > {behind};
         ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only;
         ALTER TABLE events ENABLE ALWAYS TRIGGER events_capture;
         SELECT setval('events_position_seq', {behind})"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut stack.postgres().await).await.unwrap();
}

/// Lets the projector see another run of PostgreSQL than before, as after a failover or a crash.
async fn begin_run(stack: &Stack, projection: &str) {
    let sql = format!("UPDATE {projection}__checkpoint SET server_run = UUID_TO_BIN(UUID())");
    stack.mysql().await.execute(AssertSqlSafe(sql)).await.unwrap();
}

async fn checkpoint(daemon: &Daemon, projection: &str, position: f64) {
    let series = format!("projector_checkpoint_position{{projection=\"{projection}\"}}");
    eventually(&format!("the checkpoint of {projection} reaches {position}"), async || {
        (daemon.metric(&series).await >= position).then_some(())
    })
    .await;
}

async fn diverged(daemon: &Daemon, projection: &str) {
    let text = format!("lost or replaced events that {projection} has applied");
    eventually("readiness names the lost events", async || {
        let (status, body) = daemon.get("/readyz").await?;
        (status == 503 && body.contains(&text)).then_some(())
    })
    .await;
    let series = format!("projector_diverged{{projection=\"{projection}\"}}");
    eventually("the metric shows it", async || (daemon.metric(&series).await > 0.5).then_some(()))
        .await;
}

async fn state(stack: &Stack, projection: &str) -> String {
    let (_, status) = projector(stack).args(["status", projection, "--json"]).try_run().await;
    let status: Value = serde_json::from_str(&status).unwrap();
    status["projections"][0]["state"].as_str().unwrap().to_owned()
}

async fn message(stack: &Stack, stream: &str, version: i64) -> Message {
    Message::encode(stored(stack, stream, version).await, "order.Tested".to_owned())
}

async fn deliver(stack: &Stack, messages: &[Message]) {
    let (_connection, mut publisher) = publisher(stack).await;
    for outcome in publisher.publish(messages).await.unwrap() {
        assert_eq!(outcome, Outcome::Confirmed);
    }
}

async fn dead_letters(daemon: &Daemon, count: f64) {
    let series = "projector_events_total{projection=\"tally\",outcome=\"dead_lettered\"}";
    eventually(&format!("{count} dead letters"), async || {
        (daemon.metric(series).await >= count).then_some(())
    })
    .await;
}

/// A tail of two events was applied, and is lost before the checkpoint reached it. The projection stays paused
/// across restarts until the streams are reconciled; then positions and versions that were given out again are
/// applied, and late messages of the lost tail are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_lost_tail_pauses_the_projection_until_it_is_reconciled() {
    Stack::run(async |stack| {
        let mut daemon = started(stack).await;
        stack.append("order-1", &[tested(&json!(1)), tested(&json!(2))]).await;
        stack.append("order-2", &[tested(&json!(1))]).await;
        published(stack).await;
        publish(stack, "order-1", &[1, 2]).await;
        publish(stack, "order-2", &[1]).await;
        wait_for(stack, "order-2", "1").await;
        checkpoint(&daemon, "tally", 3.0).await;
        // Not marked as published, so the checkpoint stays before them.
        stack.append("order-1", &[tested(&json!(3))]).await;
        stack.append("order-3", &[tested(&json!(1))]).await;
        stack.append("order-4", &[tested(&json!(1))]).await;
        stack.append("order-1", &[tested(&json!(4))]).await;
        publish(stack, "order-1", &[3]).await;
        publish(stack, "order-3", &[1]).await;
        wait_for(stack, "order-1", "1,2,3").await;
        wait_for(stack, "order-3", "1").await;
        let late = [message(stack, "order-4", 1).await, message(stack, "order-1", 4).await];
        lose(stack, 3).await;
        begin_run(stack, "tally").await;

        diverged(&daemon, "tally").await;
        assert_eq!(state(stack, "tally").await, "diverged");
        let refused = projector(stack).args(["resume", "tally"]).fail(1).await;
        assert!(refused.contains("reconcile-history tally"), "{refused}");
        // The new history is longer than the lost one.
        stack.append("order-1", &[tested(&json!(33))]).await;
        for stream in ["order-5", "order-6", "order-7", "order-8"] {
            stack.append(stream, &[tested(&json!(1))]).await;
        }
        published(stack).await;
        daemon.kill().await;
        daemon.restart();
        diverged(&daemon, "tally").await;
        deliver(stack, &late).await;

        let audit = || projector(stack).args(["audit", "tally", "--grace", "0s"]);
        let audited = audit().fail(1).await;
        assert!(audited.contains("applied as version 1 of order-3"), "{audited}");
        let command = |arguments: &[&str]| {
            let arguments = arguments.iter().copied();
            projector(stack).args(["reconcile-history", "tally"]).args(arguments)
        };
        let (agrees, found) = command(&["--json"]).try_run().await;
        assert!(!agrees, "{found}");
        let found: Value = serde_json::from_str(&found).unwrap();
        let streams: Vec<_> = found["streams"].as_array().unwrap().iter().collect();
        let of = |name: &str| streams.iter().find(|it| it["stream_id"] == name).unwrap();
        assert_eq!(streams.len(), 2, "{found}");
        assert!(of("order-1")["stored"].is_string(), "its third version was replaced");
        assert!(of("order-3")["stored"].is_null(), "it is a phantom");
        assert_eq!(of("order-3")["stored_version"], 0);
        let repaired = command(&["--repair"]).succeed().await;
        assert!(repaired.contains("2 streams of tally had diverged"), "{repaired}");
        daemon.ready().await;
        for stream in ["order-5", "order-6", "order-7", "order-8"] {
            wait_for(stack, stream, "1").await;
        }
        dead_letters(&daemon, 2.0).await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1,2,3"));
        assert_eq!(applied(stack, "order-3").await, None);
        assert_eq!(applied(stack, "order-4").await, None);
        assert_eq!(state(stack, "tally").await, "following");
        projector(stack).args(["verify", "tally"]).succeed().await;
        command(&[]).succeed().await;
        audit().succeed().await;
    })
    .await;
}

/// The lost tail reaches far behind the checkpoint, and the new history is longer already when the projector starts.
/// Nothing is applied. A read model whose rows belong to several streams is rebuilt.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_has_grown_past_the_checkpoint_does_not_hide_a_lost_tail() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        let append = async |events: usize, n: i64| {
            for stream in ["order-1", "order-2", "order-3"] {
                let events: Vec<_> = (0..events).map(|_| tested(&json!(n))).collect();
                stack.append(stream, &events).await;
            }
            published(stack).await;
        };
        append(2, 1).await;
        let mut daemon = projector.start_ready().await;
        append(5, 1).await;
        wait_for(stack, "order-3", "1,2,3,4,5,6,7").await;
        checkpoint(&daemon, "tally", 21.0).await;
        let late = message(stack, "order-2", 7).await;
        daemon.kill().await;
        lose(stack, 6).await;
        append(6, 2).await;
        daemon.restart();
        diverged(&daemon, "tally").await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1,2,3,4,5,6,7"));

        let command = |arguments: &[&str]| {
            projector.clone().args(["reconcile-history", "tally"]).args(arguments.iter().copied())
        };
        let (agrees, found) = command(&["--repair"]).try_run().await;
        assert!(!agrees && found.contains("A rebuild is due"), "{found}");
        projector.clone().args(["rebuild", "start", "tally"]).succeed().await;
        projector.clone().args(["resume", "tally"]).succeed().await;
        daemon.ready().await;
        deliver(stack, &[late]).await;
        stack.append("order-1", &[tested(&json!(2))]).await;
        publish(stack, "order-1", &[9]).await;
        wait_for(stack, "order-1", "1,2,3,4,5,6,7,8,9").await;
        wait_for(stack, "order-2", "1,2,3,4,5,6,7,8").await;
        dead_letters(&daemon, 1.0).await;
        projector.clone().args(["verify", "tally"]).succeed().await;
    })
    .await;
}

/// Of two projections, one has applied none of the lost events: it goes on once somebody has confirmed that.
#[tokio::test(flavor = "multi_thread")]
async fn a_projection_of_another_category_goes_on_after_a_confirmation() {
    Stack::run(async |stack| {
        let mut daemon = started(stack).await;
        stack.append("mail-1", &[event("Tested", &json!({}))]).await;
        for stream in ["order-1", "order-2"] {
            stack.append(stream, &[tested(&json!(1)), tested(&json!(2))]).await;
        }
        published(stack).await;
        wait_for(stack, "order-2", "1,2").await;
        checkpoint(&daemon, "mails", 5.0).await;
        checkpoint(&daemon, "tally", 5.0).await;
        lose(stack, 3).await;
        diverged(&daemon, "mails").await;
        diverged(&daemon, "tally").await;
        daemon.kill().await;
        stack.append("mail-2", &[event("Tested", &json!({}))]).await;
        published(stack).await;
        daemon.restart();
        diverged(&daemon, "mails").await;
        let command = |projection: &str, arguments: &[&str]| {
            projector(stack).args(["reconcile-history", projection]).args(arguments.iter().copied())
        };
        let (agrees, found) = command("mails", &[]).try_run().await;
        assert!(!agrees && found.contains("no lost event is applied"), "{found}");
        command("mails", &["--repair"]).succeed().await;
        assert_eq!(state(stack, "tally").await, "diverged", "each projection has its own decision");
        command("tally", &["--repair"]).succeed().await;
        daemon.ready().await;
        eventually("the event at a position that was given out again is applied", async || {
            let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM mails")
                .fetch_one(&mut stack.mysql().await)
                .await
                .unwrap();
            (count == 2).then_some(())
        })
        .await;
        assert_eq!(applied(stack, "order-2").await, None);
        wait_for(stack, "order-1", "1,2").await;
    })
    .await;
}

/// The lost events were still in a queue: nothing has diverged, and they become dead letters. What has their versions
/// now is applied.
#[tokio::test(flavor = "multi_thread")]
async fn late_messages_of_lost_events_become_dead_letters() {
    Stack::run(async |stack| {
        let daemon = started(stack).await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        published(stack).await;
        publish(stack, "order-1", &[1]).await;
        wait_for(stack, "order-1", "1").await;
        checkpoint(&daemon, "tally", 1.0).await;
        stack.append("order-1", &[tested(&json!(2)), tested(&json!(3))]).await;
        let late = [message(stack, "order-1", 2).await, message(stack, "order-1", 3).await];
        lose(stack, 1).await;
        begin_run(stack, "tally").await;
        eventually("the projector has compared the histories", async || {
            let until: Option<i64> = sqlx::query_scalar(
                "SELECT CAST(compared_until AS SIGNED) FROM projector_projections WHERE name = 'tally'",
            )
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
            until
        })
        .await;
        deliver(stack, &late).await;
        dead_letters(&daemon, 2.0).await;
        let reasons = crate::projector::dead_letters(stack, 2).await;
        assert!(reasons.iter().all(|it| it.contains("has lost it in a failover")), "{reasons:?}");
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1"));
        stack.append("order-1", &[tested(&json!(2))]).await;
        published(stack).await;
        publish(stack, "order-1", &[2]).await;
        wait_for(stack, "order-1", "1,2").await;
        daemon.ready().await;
        projector(stack).args(["verify", "tally"]).succeed().await;
    })
    .await;
}

/// A restart of PostgreSQL, gaps in the positions, events in flight and the bookkeeping of an earlier release raise no
/// alarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_a_loss_raises_no_alarm() {
    Stack::run(async |stack| {
        let _relay = stack.relay().start_ready().await;
        let mut daemon = started(stack).await;
        let mut versions = String::new();
        for round in 1..=6 {
            stack.append("order-1", &[tested(&json!(1))]).await;
            stack.append("mail-1", &[event("Tested", &json!({}))]).await;
            let mut gap = stack.postgres().await;
            gap.execute("BEGIN").await.unwrap();
            harness::append(&mut gap, "order-9", None, &json!([tested(&json!(1))])).await.unwrap();
            gap.execute("ROLLBACK").await.unwrap();
            let mut mysql = stack.mysql().await;
            match round {
                2 => {
                    let sql = "UPDATE tally__checkpoint SET landmark_position = NULL,
                                      landmark_id = NULL, server_run = NULL;
                               UPDATE tally__streams SET position = NULL";
                    sqlx::raw_sql(sql).execute(&mut mysql).await.unwrap();
                }
                // A daemon of the version before moves the checkpoint alone.
                3 => {
                    let sql = "UPDATE tally__checkpoint SET position = position + 1";
                    mysql.execute(sql).await.unwrap();
                }
                4 => {
                    daemon.kill().await;
                    daemon.restart();
                }
                5 => {
                    projector(stack).args(["rebuild", "start", "tally"]).succeed().await;
                }
                _ => {}
            }
            begin_run(stack, "tally").await;
            versions = format!("{versions}{}{round}", if round > 1 { "," } else { "" });
            wait_for(stack, "order-1", &versions).await;
            eventually("the checkpoint has a landmark in this run", async || {
                let found: (Option<u64>, bool) = sqlx::query_as(
                    "SELECT landmark_position,
                            server_run = (SELECT server_run FROM mails__checkpoint)
                     FROM tally__checkpoint",
                )
                .fetch_one(&mut stack.mysql().await)
                .await
                .unwrap();
                (found.0 > Some(0) && found.1).then_some(())
            })
            .await;
        }
        daemon.ready().await;
        projector(stack).args(["reconcile-history", "tally"]).succeed().await;
        let dead = "projector_events_total{projection=\"tally\",outcome=\"dead_lettered\"}";
        assert!(daemon.metric(dead).await < 0.5);
        assert!(!daemon.log().contains("lost or replaced"), "{}", daemon.log());
    })
    .await;
}
