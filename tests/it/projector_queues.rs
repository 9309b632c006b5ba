//! Queues that do not deliver are reported, and declared again where they are lost.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use harness::{Stack, eventually, within};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::time::sleep;

use crate::projector::{TALLY, tested, wait_for};

/// Starts a consumer of another program that receives the first of five events and never settles it. Its
/// priority makes it the single active consumer, so the queue delivers nothing and only grows.
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

/// The projector reports a stuck queue in its health, applies its events from the event store, and deletes nothing.
/// `topology reset` is the last remedy: the queue is declared again and delivers.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_queue_is_reported_and_reset_by_command() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let projector = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let broker = stack.amqp().await;
        let mut greedy = greedy(stack, &broker).await;
        wait_for(stack, "order-1", "1,2,3,4,5").await;
        let reported = async || {
            let (status, body) = projector.get("/readyz").await?;
            let what = "RabbitMQ has delivered no message of projector.tally to any instance";
            (status == 503 && body.contains(what)).then_some(())
        };
        eventually("readiness reports the queue", reported).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            assert!(reported().await.is_some(), "readiness stopped reporting the queue too early");
            sleep(Duration::from_millis(100)).await;
        }
        let reset = stack.projector(TALLY).args(["topology", "reset", "tally"]).succeed().await;
        assert!(reset.contains("queue projector.tally is deleted"), "{reset}");
        assert!(
            greedy.next().await.is_none(),
            "the consumer of the deleted queue was not cancelled"
        );
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

/// A consumer of another program that takes all messages leaves none ready in the queue. Readiness and the status
/// say that the queue brings nothing, for as long as that lasts. Method: the consumer has no prefetch limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_all_messages_is_noticed() {
    Stack::run(async |stack| {
        let program = stack.projector(TALLY);
        program.clone().arg("migrate").succeed().await;
        let projector = program.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let broker = stack.amqp().await;
        let channel = broker.create_channel().await.unwrap();
        let mut first = FieldTable::default();
        first.insert("x-priority".into(), AMQPValue::LongInt(1_000_000));
        let (queue, options) = ("projector.tally", BasicConsumeOptions::default());
        let _consumer =
            channel.basic_consume(queue.into(), "foreign".into(), options, first).await.unwrap();
        let append = async |number: usize| {
            let stream = format!("order-{number}");
            stack.append(&stream, &[tested(&json!(1))]).await;
            wait_for(stack, &stream, "1").await;
        };
        let reported = async || {
            let (status, body) = projector.get("/readyz").await?;
            let what = "projector.tally brought nothing since";
            (status == 503 && body.contains(what)).then_some(())
        };
        for number in 1..=3 {
            append(number).await;
        }
        eventually("readiness reports the queue", reported).await;
        for number in 4..=6 {
            append(number).await;
            assert!(reported().await.is_some(), "readiness stopped reporting the queue");
        }
        let status = program.clone().arg("status").fail(1).await;
        assert!(status.contains("projector.tally brought nothing since"), "{status}");
        assert!(status.contains("another program probably receives the messages"), "{status}");
        broker.close(200, "".into()).await.unwrap();
        projector.ready().await;
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
