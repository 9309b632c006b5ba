//! What `outbox-relay status` and `/readyz` say about the causes of a backlog.

use harness::{Mode, Proxy, Stack, Tap, event, eventually};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::relay::{all_processed, fill};

/// Waits until the status ends with an exit code and contains a text.
async fn status_says(stack: &Stack, code: i32, text: &str) {
    eventually(&format!("the status says {text:?}"), async || {
        let output = stack.relay().arg("status").output().await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code() == Some(code) && said.contains(text)).then_some(())
    })
    .await;
}

/// Each state has its exit code, and its cause is named: no relay, no broker, locked lanes, no queue.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_names_the_cause_of_a_backlog() {
    Stack::run(async |stack| {
        stack.append("order-1", &[event("A", &json!({}))]).await;
        status_says(stack, 3, "no relay is connected").await;

        let tap = Tap::open(stack).await;
        let (broker, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let relay = stack.relay().env("AMQP_URL", &amqp_url).start_ready().await;
        tap.wait_for(1).await;
        status_says(stack, 0, "state     ok").await;

        broker.set(Mode::Reset);
        status_says(stack, 3, "cannot publish to RabbitMQ since").await;
        broker.set(Mode::Pass);
        status_says(stack, 0, "state     ok").await;

        let mut other = stack.postgres().await;
        let mut locked = other.begin().await.unwrap();
        locked.execute("SET LOCAL application_name = 'a person'").await.unwrap();
        locked.execute("SELECT FROM outbox_lanes FOR UPDATE").await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *locked).await.unwrap();
        let named = format!("pid {pid} (\"a person\") has locked 64 lanes of 64");
        status_says(stack, 3, &named).await;
        let json = stack.relay().args(["status", "--json"]).fail(3).await;
        let cause = serde_json::from_str::<Value>(&json).unwrap()["causes"][0].take();
        assert_eq!((&cause["state"], &cause["cause"]), (&json!("broken"), &json!("lanes_locked")));
        assert_eq!(cause["object"], format!("pid {pid} (\"a person\")"));
        let since: chrono::DateTime<chrono::Utc> = cause["since"].as_str().unwrap().parse().unwrap();
        assert!(since < chrono::Utc::now(), "{cause}");
        assert!(cause["remedy"].as_str().unwrap().contains(&format!("pg_terminate_backend({pid})")));
        let lanes = async || {
            let (status, body) = relay.get("/readyz").await?;
            let report: Value = serde_json::from_str(&body).ok()?;
            Some((status, report["components"]["outbox lanes"]["reason"].to_string()))
        };
        eventually("readiness names the session", async || {
            let (status, reason) = lanes().await?;
            (status == 503 && reason.contains(&format!("pid {pid}"))).then_some(())
        })
        .await;
        locked.rollback().await.unwrap();
        relay.ready().await;
        status_says(stack, 0, "state     ok").await;

        let name = format!("it's {}", stack.name());
        let quoted = name.replace('\'', "''");
        let prepare = format!(
            "BEGIN; SELECT FROM outbox_lanes WHERE lane = 7 FOR UPDATE; PREPARE TRANSACTION '{quoted}'"
        );
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut other).await.unwrap();
        status_says(stack, 3, &format!("{name:?} has locked 1 lane of 64 in outbox_lanes since")).await;
        let rollback = format!("ROLLBACK PREPARED '{quoted}'");
        status_says(stack, 3, &rollback).await;
        sqlx::raw_sql(AssertSqlSafe(rollback)).execute(&mut other).await.unwrap();
        status_says(stack, 0, "state     ok").await;
    })
    .await;
}

/// A stream that waits for a queue does not count in the age of the pending events, and is logged.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_stream_does_not_hold_the_age_of_the_backlog() {
    Stack::run(async |stack| {
        let relay = stack.relay().start_ready().await;
        stack.append("nowhere-1", &[event("A", &json!({}))]).await;
        status_says(stack, 1, "no queue is bound for nowhere.A").await;
        eventually("the age of the waiting event is measured", async || {
            (relay.metric("outbox_relay_oldest_held_age_seconds").await > 0.0).then_some(())
        })
        .await;
        assert!(relay.metric("outbox_relay_oldest_pending_age_seconds").await < 0.001);
        assert!(relay.log().contains("no queue is bound for routing key nowhere.A"));
    })
    .await;
}

/// Ids of the outbox that go back cost a few seconds at most, and the status counts the events meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_go_back_do_not_hide_events() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let mut relay = stack.relay().start_ready().await;
        fill(stack, "order", 100, 5).await;
        tap.wait_for(500).await;
        all_processed(stack).await;
        let floor = "SELECT last_value FROM outbox_floor";
        let mut connection = stack.postgres().await;
        eventually("the floor has risen", async || {
            let floor: i64 = sqlx::query_scalar(floor).fetch_one(&mut connection).await.ok()?;
            (floor > 500).then_some(())
        })
        .await;
        for (number, back) in [
            "TRUNCATE outbox RESTART IDENTITY",
            "DELETE FROM outbox; SELECT setval('outbox_id_seq', 1)",
        ]
        .into_iter()
        .enumerate()
        {
            sqlx::raw_sql(back).execute(&mut connection).await.unwrap();
            fill(stack, &format!("order{number}"), 50, 1).await;
            tap.wait_for(550 + 50 * number).await;
            all_processed(stack).await;
        }
        relay.terminate().await;

        connection.execute("SELECT setval('outbox_floor', 1000000)").await.unwrap();
        fill(stack, "mail", 10, 1).await;
        let status = stack.relay().arg("status").arg("--json").fail(3).await;
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["pending"], 10);
    })
    .await;
}
