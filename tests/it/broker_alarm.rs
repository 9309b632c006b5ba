//! Alarms of the whole broker. These tests disturb every user of it, so they run alone.

use std::time::{Duration, Instant};

use harness::{Alarm, Daemon, Stack, Tap, event, eventually};
use serde_json::{Value, json};

use crate::relay::{all_processed, fill};

async fn append(stack: &Stack, count: usize) {
    for number in 0..count {
        stack.append(&format!("order-{number}"), &[event("A", &json!({}))]).await;
    }
}

async fn says_why(relay: &Daemon) {
    eventually("readiness says why", async || {
        let (status, body) = relay.get("/readyz").await?;
        let report: Value = serde_json::from_str(&body).ok()?;
        let reason = report["components"]["rabbitmq"]["reason"].as_str()?;
        (status == 503 && reason.contains("short of memory or disk")).then_some(())
    })
    .await;
}

/// Runs a test with a relay while the broker accepts no messages.
async fn with_alarm(test: impl AsyncFnOnce(&Stack, &Tap, Daemon, Alarm)) {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let relay = stack
            .relay()
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "3s")
            .env("OUTBOX_RELAY__RELAY__RECONNECT_MAX", "4s")
            .start_ready()
            .await;
        let Some(alarm) = Alarm::raise() else {
            println!("SKIPPED: RABBITMQCTL names no program");
            return;
        };
        append(stack, 20).await;
        says_why(&relay).await;
        test(stack, &tap, relay, alarm).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "disturbs every user of the broker; `cargo xtask test` runs it alone"]
async fn the_relay_waits_for_a_blocked_broker() {
    with_alarm(async |stack, tap, relay, alarm| {
        // Twice the limit of a batch.
        let begun = Instant::now();
        let mut oldest = 0.0_f64;
        while begun.elapsed() < Duration::from_secs(8) {
            let open: Option<f64> = sqlx::query_scalar(
                "SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8
                 FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'",
            )
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap();
            oldest = oldest.max(open.unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("the oldest transaction was open for {oldest:.1} s");
        assert!(oldest < 6.0, "{oldest}");
        append(stack, 20).await;
        drop(alarm);
        let lifted = Instant::now();
        tap.wait_for(40).await;
        println!("published again after {:?}", lifted.elapsed());
        assert!(lifted.elapsed() < Duration::from_secs(10));
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_last_copies(&tap.seen()), 0);
        relay.ready().await;
    })
    .await;
}

/// lapin keeps reporting a lost connection as blocked.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "disturbs every user of the broker; `cargo xtask test` runs it alone"]
async fn the_relay_reconnects_to_a_broker_that_restarts_while_blocked() {
    with_alarm(async |stack, _tap, relay, alarm| {
        alarm.restart_broker();
        drop(alarm);
        let lifted = Instant::now();
        relay.ready().await;
        println!("ready again after {:?}", lifted.elapsed());
        // The restart ended the first tap.
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let purge = lapin::options::QueuePurgeOptions::default();
        channel.queue_purge("tap".into(), purge).await.unwrap();
        fill(stack, "mail", 20, 2).await;
        all_processed(stack).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "disturbs every user of the broker; `cargo xtask test` runs it alone"]
async fn sigterm_ends_a_relay_whose_broker_is_blocked() {
    with_alarm(async |stack, tap, mut relay, alarm| {
        let (status, after) = relay.terminate().await;
        println!("ended after {after:?}");
        assert_eq!(status.code(), Some(0));
        assert!(after < Duration::from_secs(10), "{after:?}");
        drop(alarm);
        let _relay = stack.relay().start_ready().await;
        tap.wait_for(20).await;
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_last_copies(&tap.seen()), 0);
    })
    .await;
}
