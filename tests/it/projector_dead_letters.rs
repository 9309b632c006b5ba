//! Dead letters, and the commands for them.

use domain_events::{Message, header};
use harness::eventually;
use serde_json::Value;
use uuid::Uuid;

use crate::projector::{
    DEAD, QUEUE, TALLY, publish, publisher, stored, tested, wait_for, with_projector,
};

/// Dead letters are counted and listed with their reasons. After their cause is removed, they are replayed;
/// others are discarded. No command loses one.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_replayed_and_discarded() {
    with_projector(async |stack, projector| {
        stack.append("order-1", &[tested(&1.into()), tested(&2.into())]).await;
        let real = Message::encode(stored(stack, "order-1", 1).await, "order.Tested".to_owned());
        let mut foreign = real.clone();
        foreign.message_id = Some(Uuid::new_v4().to_string());
        foreign.headers.remove(header::STREAM_VERSION);
        let (_connection, mut publisher) = publisher(stack).await;
        publisher.publish(&[foreign.clone()]).await.unwrap();
        // As an operator, or a policy, moves an event to the queue.
        let broker = stack.broker().await;
        let mut direct = broker.publisher("", std::time::Duration::from_secs(5)).await.unwrap();
        direct.publish(&[Message { routing_key: DEAD.to_owned(), ..real.clone() }]).await.unwrap();
        let series = "projector_dead_letters{projection=\"tally\"}";
        eventually("both are counted", async || {
            (projector.metric(series).await > 1.5).then_some(())
        })
        .await;

        let dead =
            |arguments: &[&str]| stack.projector(TALLY).arg("dead").args(arguments.iter().copied());
        // More often than RabbitMQ returns a message before it drops it.
        for _ in 0..22 {
            let listed = dead(&["list", "tally", "--json"]).succeed().await;
            let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
            assert_eq!(listed.len(), 2, "{listed:?}");
            let of = |id: &Option<String>| {
                listed.iter().find(|one| one["message_id"].as_str() == id.as_deref()).unwrap()
            };
            let reason = of(&foreign.message_id)["reason"].as_str().unwrap();
            assert!(reason.contains("the event is not in the event store"), "{reason}");
            assert_eq!(of(&foreign.message_id)["queue"], QUEUE);
            let reason = of(&real.message_id)["reason"].as_str().unwrap();
            assert!(reason.contains("another program has published it"), "{reason}");
        }
        let real_id = real.message_id.clone().unwrap();
        let text = dead(&["show", "tally", &real_id]).succeed().await;
        assert!(text.contains("header    stream_id: \"order-1\""), "{text}");
        assert!(!text.contains("payload"), "{text}");
        let shown = dead(&["show", "tally", &real_id, "--payload", "--json"]).succeed().await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["payload"], String::from_utf8(real.body.clone()).unwrap());
        assert_eq!(shown["headers"]["stream_id"], "order-1");

        dead(&["replay", "tally", "no-such-message"]).fail(65).await;
        dead(&["replay", "tally", &real_id]).succeed().await;
        publish(stack, "order-1", &[2]).await;
        wait_for(stack, "order-1", "1,2").await;
        // The cause of the other one remains.
        let foreign_id = foreign.message_id.unwrap();
        dead(&["replay", "tally", "--all"]).succeed().await;
        eventually("it is a dead letter again", async || {
            dead(&["list", "tally"]).succeed().await.contains(&foreign_id).then_some(())
        })
        .await;
        let discard =
            ["discard", "tally", "--error", "not in the event store", "--reason", "a test"];
        dead(&discard).succeed().await;
        assert_eq!(dead(&["list", "tally"]).succeed().await.trim(), "there are no dead letters");
        let recorded: Vec<(String, String)> =
            sqlx::query_as("SELECT action, reason FROM projector_audit ORDER BY id")
                .fetch_all(&mut stack.mysql().await)
                .await
                .unwrap();
        let expected = [
            ("dead replay", format!("message {real_id}: replayed")),
            ("dead replay", format!("message {foreign_id}: replayed")),
            ("dead discard", format!("message {foreign_id}: a test")),
        ];
        let expected = expected.map(|(action, reason)| (action.to_owned(), reason));
        assert_eq!(recorded, expected);
        eventually("none is counted", async || {
            (projector.metric(series).await < 0.5).then_some(())
        })
        .await;
    })
    .await;
}
