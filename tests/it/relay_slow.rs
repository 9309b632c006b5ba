//! A slow link to the broker.

use std::time::Duration;

use harness::{Mode, Proxy, Stack, Tap, eventually, within};
use serde_json::Value;

use crate::relay::{fill, unprocessed};

/// A batch that the link cannot carry within the confirm timeout costs no progress: what was confirmed
/// is kept, and the next batches are small enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_carries_every_event() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let (link, amqp_url) = Proxy::before(&stack.amqp_url).await;
        fill(stack, "order", 50, 8).await;
        link.set(Mode::Throttle(15_000));
        let relay = stack
            .relay()
            .env("AMQP_URL", &amqp_url)
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "2s")
            .start();
        eventually("readiness says how slow the broker is", async || {
            let (_, body) = relay.get("/readyz").await?;
            let report: Value = serde_json::from_str(&body).ok()?;
            let rabbitmq = &report["components"]["rabbitmq"];
            rabbitmq["note_since"].as_str()?;
            rabbitmq["note"].as_str()?.contains("the broker confirms").then_some(())
        })
        .await;
        eventually("the status says it too", async || {
            let output = stack.relay().arg("status").output().await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let said = text.lines().find(|line| line.contains("is slow: the broker confirms"))?;
            assert!(said.contains("/s since 2"), "{said}");
            (output.status.code() == Some(1)).then_some(())
        })
        .await;
        within(Duration::from_mins(2), "every event is published", async || {
            (unprocessed(stack).await == 0).then_some(())
        })
        .await;
        let seen = tap.seen();
        println!("400 events, {} duplicates", seen.len() - 400);
        assert!(seen.len() - 400 <= 128, "at most a batch of each worker is sent twice");
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
    })
    .await;
}
