//! Lost messages, queues and events.

use std::time::Duration;

use domain_events::{EventId, HeaderValue, Message};
use harness::{Stack, eventually};
use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use serde_json::json;
use sqlx::Executor;
use tokio::time::sleep;
use uuid::Uuid;

use crate::projector::{
    QUEUE, TALLY, applied, dead_letters, publish, publisher, stored, tested, wait_for,
    with_projector,
};

/// A lost message shows as a gap at the next message of its stream. The event store supplies the
/// missing event.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_healed_from_the_event_store() {
    with_projector(async |stack, projector| {
        let events: Vec<_> = (1..=6).map(|n| tested(&json!(n))).collect();
        stack.append("order-1", &events).await;
        publish(stack, "order-1", &[1, 4]).await;
        wait_for(stack, "order-1", "1,2,3,4").await;
        publish(stack, "order-1", &[6, 5]).await;
        wait_for(stack, "order-1", "1,2,3,4,5,6").await;
        let series = "projector_healed_events_total{projection=\"tally\",by=\"gap\"}";
        assert!(projector.metric(series).await >= 2.0);
    })
    .await;
}

/// No later event reveals the loss of the last event of a stream. The sweeper finds it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sweeper_finds_a_lost_last_event() {
    with_projector(async |stack, projector| {
        // The outbox says published, but no message reached the queue.
        stack.append("order-1", &[tested(&json!(1)), tested(&json!(2))]).await;
        stack.append("order-2", &[tested(&json!(1))]).await;
        let mut postgres = stack.postgres().await;
        postgres.execute("UPDATE outbox SET processed_at = now()").await.unwrap();
        wait_for(stack, "order-1", "1,2").await;
        wait_for(stack, "order-2", "1").await;
        let series = "projector_healed_events_total{projection=\"tally\",by=\"sweep\"}";
        assert!(projector.metric(series).await >= 3.0);
        eventually("the checkpoint passes the events", async || {
            let series = "projector_checkpoint_position{projection=\"tally\"}";
            (projector.metric(series).await > 2.0).then_some(())
        })
        .await;
    })
    .await;
}

/// An event that the relay has not published yet is not lost, so the sweeper must not apply it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sweeper_ignores_unpublished_events() {
    with_projector(async |stack, projector| {
        stack.append("order-1", &[tested(&json!(1))]).await;
        // This is several times the grace period.
        sleep(Duration::from_secs(4)).await;
        assert_eq!(applied(stack, "order-1").await, None);
        let series = "projector_healed_events_total{projection=\"tally\",by=\"sweep\"}";
        assert!(projector.metric(series).await < 1.0);
        let _relay = stack.relay().start();
        wait_for(stack, "order-1", "1").await;
    })
    .await;
}

/// A message becomes a dead letter when the event store lacks the versions before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_missing_from_the_event_store_is_dead_lettered() {
    with_projector(async |stack, _| {
        stack.append("order-1", &[tested(&json!(1)), tested(&json!(2))]).await;
        publish(stack, "order-1", &[1, 2]).await;
        let mut beyond = stored(stack, "order-1", 2).await;
        beyond.event_id = EventId::new(Uuid::new_v4()).unwrap();
        let mut beyond = Message::encode(beyond, "order.Tested".to_owned());
        beyond.headers.insert("stream_version".into(), HeaderValue::Integer(9));
        let (_connection, mut publisher) = publisher(stack).await;
        publisher.publish(&[beyond]).await.unwrap();
        let reasons = dead_letters(stack, 1).await;
        let nowhere =
            "version 9 of stream order-1 cannot be applied: the event store has no version 3";
        assert_eq!(reasons, [nowhere]);
        wait_for(stack, "order-1", "1,2").await;
    })
    .await;
}

/// E7: a deleted queue only ends lapin's consumer, while connection and channel stay up. The projector
/// declares the queue again and loses no event.
#[tokio::test(flavor = "multi_thread")]
async fn e7_a_deleted_queue_is_declared_again_and_nothing_is_lost() {
    with_projector(async |stack, projector| {
        let mut relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        relay.terminate().await;
        projector.signal(rustix::process::Signal::STOP);
        stack.append("order-1", &[tested(&json!(2))]).await;
        stack.append("order-2", &[tested(&json!(1))]).await;
        let mut relay = stack.relay().start_ready().await;
        eventually("both events are published", async || {
            (stack.broker().await.ready_messages(QUEUE).await.unwrap() == Some(0)).then_some(())
        })
        .await;
        relay.terminate().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
        projector.signal(rustix::process::Signal::CONT);

        wait_for(stack, "order-1", "1,2").await;
        wait_for(stack, "order-2", "1").await;
        let _relay = stack.relay().start();
        stack.append("order-1", &[tested(&json!(3))]).await;
        wait_for(stack, "order-1", "1,2,3").await;
        projector.ready().await;
    })
    .await;
}

/// The event store supplies the events of a purged queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_purged_queue_loses_nothing() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        stack.projector(TALLY).start_ready().await.terminate().await;
        let mut relay = stack.relay().start_ready().await;
        for number in 0..20 {
            stack.append(&format!("order-{number}"), &[tested(&json!(1))]).await;
        }
        eventually("the queue holds all messages", async || {
            (stack.broker().await.ready_messages(QUEUE).await.unwrap() == Some(20)).then_some(())
        })
        .await;
        relay.terminate().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await.unwrap();
        let _projector = stack.projector(TALLY).start();
        for number in 0..20 {
            wait_for(stack, &format!("order-{number}"), "1").await;
        }
    })
    .await;
}
