//! Queues that do not deliver: noticed and repaired.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use harness::{Stack, eventually, within};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::time::sleep;
use url::Url;

use crate::projector::{TALLY, tested, wait_for};

/// After a crash, RabbitMQ can keep a consumer for the active one that is gone: its queue serves nobody,
/// and only grows. Somebody who takes messages and never settles them looks the same: this one has the
/// first of five events.
async fn greedy(stack: &Stack, broker: &lapin::Connection) -> lapin::Consumer {
    let channel = broker.create_channel().await.unwrap();
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let mut first = FieldTable::default();
    first.insert("x-priority".into(), AMQPValue::LongInt(1_000_000));
    let options = BasicConsumeOptions::default();
    let queue = "projector.tally";
    let mut greedy =
        channel.basic_consume(queue.into(), "greedy".into(), options, first).await.unwrap();
    let events: Vec<_> = (1..=5).map(|n| tested(&json!(n))).collect();
    stack.append("order-1", &events).await;
    greedy.next().await.unwrap().unwrap();
    greedy
}

/// The queue is deleted and declared again, without anybody's help; its events come from the event store.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_queue_is_deleted_and_declared_again() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let projector = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let broker = stack.amqp().await;
        let mut greedy = greedy(stack, &broker).await;
        eventually("the queue is deleted", async || {
            projector.log().contains("it was deleted and is declared again").then_some(())
        })
        .await;
        assert!(greedy.next().await.is_none(), "the consumer of the old queue is cancelled");
        wait_for(stack, "order-1", "1,2,3,4,5").await;
        projector.ready().await;
        let healed = "projector_healed_events_total{projection=\"tally\",by=\"sweep\"}";
        let before = projector.metric(healed).await;
        stack.append("order-1", &[tested(&json!(6))]).await;
        wait_for(stack, "order-1", "1,2,3,4,5,6").await;
        let after = projector.metric(healed).await;
        assert!((after - before).abs() < 0.5, "it came by the queue");
    })
    .await;
}

/// Without the right to delete the queue, health names it until the broker serves it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_queue_that_may_not_be_deleted_is_reported() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let projector = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let user = Url::parse(&stack.amqp_url).unwrap().username().to_owned();
        let rights = json!({ "configure": "^$", "write": ".*", "read": ".*" });
        stack.manage("PUT", &format!("permissions/{}/{user}", stack.name()), &rights).await;
        let broker = stack.amqp().await;
        let _greedy = greedy(stack, &broker).await;
        wait_for(stack, "order-1", "1,2,3,4,5").await;
        let reported = async || {
            let (status, body) = projector.get("/readyz").await?;
            let why = "could not delete the queue: deleting a queue in RabbitMQ failed";
            (status == 503 && body.contains(why) && body.contains("ACCESS_REFUSED")).then_some(())
        };
        eventually("readiness says so", reported).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            assert!(reported().await.is_some(), "it says so until something changes");
            sleep(Duration::from_millis(100)).await;
        }
        broker.close(200, "".into()).await.unwrap();
        projector.ready().await;
        assert!(!projector.log().contains("it was deleted"));
    })
    .await;
}

/// A batch that takes long has all deliveries that may be unsettled, so that no more come. That is not a
/// queue which serves nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_instance_keeps_its_queue() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__PREFETCH", "2");
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        let mut other = stack.mysql().await;
        let mut transaction = other.begin().await.unwrap();
        let lock = "UPDATE tally_total SET applied = applied";
        transaction.execute(lock).await.unwrap();
        let since = Instant::now();
        let events: Vec<_> = (2..=9).map(|n| tested(&json!(n))).collect();
        stack.append("order-1", &events).await;
        let held = async || {
            let held: Option<String> =
                sqlx::query_scalar("SELECT CAST(partitions AS CHAR) FROM projector_instances")
                    .fetch_optional(&mut stack.mysql().await)
                    .await
                    .unwrap();
            held.as_deref() == Some("[1]")
        };
        eventually("it is served", async || held().await.then_some(())).await;
        // Longer than a delivery counts, shorter than a statement waits for a row.
        while since.elapsed() < Duration::from_secs(4) {
            assert!(held().await, "after {:?}", since.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
        transaction.rollback().await.unwrap();
        wait_for(stack, "order-1", "1,2,3,4,5,6,7,8,9").await;
    })
    .await;
}

/// A queue that is not bound any more gets nothing, and nobody tells: only what the sweeper finds.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_binding_is_declared_again() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let daemon = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default);
        // For somebody else the exchange still has a use.
        let options = QueueDeclareOptions::durable();
        channel.queue_declare("else".into(), options, none()).await.unwrap();
        let (exchange, key) = ("events", "order.#");
        channel.queue_bind("else".into(), exchange.into(), key.into(), bind, none()).await.unwrap();
        let queue = "projector.tally";
        channel.queue_unbind(queue.into(), exchange.into(), key.into(), none()).await.unwrap();
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        let by_the_queue = async |stream: String| {
            let healed = "projector_healed_events_total{projection=\"tally\",by=\"sweep\"}";
            let before = daemon.metric(healed).await;
            stack.append(&stream, &[tested(&json!(1))]).await;
            wait_for(stack, &stream, "1").await;
            (daemon.metric(healed).await - before).abs() < 0.5
        };
        let mut number = 1;
        within(Duration::from_secs(20), "an event comes by the queue", async || {
            number += 1;
            by_the_queue(format!("order-{number}")).await.then_some(())
        })
        .await;
    })
    .await;
}
