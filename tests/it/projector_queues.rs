//! Queues that do not deliver are detected and repaired.

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

/// Starts a consumer that receives the first of five events and never settles it. After a crash,
/// RabbitMQ may keep treating a pre-crash consumer as the single active consumer: its queue delivers
/// nothing and only grows. To the projector, this consumer looks the same.
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

/// The projector deletes a stuck queue and declares it again. The events of the queue come from the
/// event store.
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
        assert!(
            greedy.next().await.is_none(),
            "the consumer of the deleted queue was not cancelled"
        );
        wait_for(stack, "order-1", "1,2,3,4,5").await;
        projector.ready().await;
        let healed = "projector_healed_events_total{projection=\"tally\",by=\"sweep\"}";
        let before = projector.metric(healed).await;
        stack.append("order-1", &[tested(&json!(6))]).await;
        wait_for(stack, "order-1", "1,2,3,4,5,6").await;
        let after = projector.metric(healed).await;
        assert!((after - before).abs() < 0.5, "the event did not come through the queue");
    })
    .await;
}

/// Without the right to delete a stuck queue, the projector reports it in its health until the queue
/// delivers again.
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
        eventually("readiness reports the queue", reported).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            assert!(reported().await.is_some(), "readiness stopped reporting the queue too early");
            sleep(Duration::from_millis(100)).await;
        }
        broker.close(200, "".into()).await.unwrap();
        projector.ready().await;
        assert!(!projector.log().contains("it was deleted"));
    })
    .await;
}

/// A projector that runs a long batch keeps its queue. The batch holds as many deliveries as the
/// prefetch limit allows, so no more arrive, although the queue is not stuck.
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
        eventually("the instance owns its queue", async || held().await.then_some(())).await;
        // This is longer than the limit for a stuck queue, and shorter than the lock wait of a
        // statement.
        while since.elapsed() < Duration::from_secs(4) {
            assert!(held().await, "lost after {:?}", since.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
        transaction.rollback().await.unwrap();
        wait_for(stack, "order-1", "1,2,3,4,5,6,7,8,9").await;
    })
    .await;
}

/// The projector restores a lost binding. RabbitMQ does not report the loss, and the queue receives no
/// more messages. The first sign is an event that the sweeper finds.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_binding_is_declared_again() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let daemon = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default);
        // Another queue keeps the message routable, so the relay reports no error.
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
        within(Duration::from_secs(20), "an event comes through the queue", async || {
            number += 1;
            by_the_queue(format!("order-{number}")).await.then_some(())
        })
        .await;
    })
    .await;
}
