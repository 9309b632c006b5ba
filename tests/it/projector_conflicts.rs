//! Messages with an applied version and another event id.

use broker::Outcome;
use domain_events::{EventId, Message};
use harness::{Stack, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::projector::{
    TALLY, applied, publish, publisher, stored, tested, wait_for, with_projector,
};

/// The parked streams, with their reasons.
async fn parked(stack: &Stack) -> Vec<(String, String)> {
    let list = stack.projector(TALLY).args(["parked", "list", "tally", "--json"]).succeed().await;
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list.iter().map(|one| (text(&one["stream_id"]), text(&one["reason"]))).collect()
}

/// An older version with another id is a conflict, although the bookkeeping has the id of the last version
/// only: of another program's event, and of a stream that was deleted and appended again. A repetition is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_with_another_id_parks_its_stream() {
    with_projector(async |stack, _| {
        for stream in ["order-1", "order-2", "order-3"] {
            stack.append(stream, &[tested(&json!(1)), tested(&json!(2)), tested(&json!(3))]).await;
            publish(stack, stream, &[1, 2, 3]).await;
            wait_for(stack, stream, "1,2,3").await;
        }
        // order-1 is deleted past the trigger that forbids it, and begins again.
        sqlx::raw_sql(
            "ALTER TABLE events DISABLE TRIGGER USER;
             DELETE FROM outbox WHERE stream_id = 'order-1';
             DELETE FROM events WHERE stream_id = 'order-1';
             ALTER TABLE events ENABLE TRIGGER USER",
        )
        .execute(&mut stack.postgres().await)
        .await
        .unwrap();
        stack.append("order-1", &[tested(&json!(7))]).await;
        // order-2 gets the event of another program.
        let mut other = stored(stack, "order-2", 1).await;
        other.event_id = EventId::new(Uuid::new_v4()).unwrap();
        let message = Message::encode(other, "order.Tested".to_owned());
        publish(stack, "order-3", &[1, 2, 3]).await;
        let (_connection, mut publisher) = publisher(stack).await;
        assert_eq!(publisher.publish(&[message]).await.unwrap(), [Outcome::Confirmed]);
        publish(stack, "order-1", &[1]).await;

        let found = eventually("both streams are parked", async || {
            let found = parked(stack).await;
            (found.len() >= 2).then_some(found)
        })
        .await;
        let reason = |stream: &str| &found.iter().find(|(name, _)| name == stream).unwrap().1;
        assert!(reason("order-1").contains("was deleted and appended again"), "{found:?}");
        assert!(reason("order-2").contains("another event has version 1"), "{found:?}");
        assert_eq!(found.len(), 2, "a repetition is no conflict: {found:?}");

        // The event store has what was applied to order-2, and not what was applied to order-1.
        let retry = |stream: &'static str| {
            stack.projector(TALLY).args(["parked", "retry", "tally", stream])
        };
        retry("order-2").succeed().await;
        let refused = retry("order-1").fail(1).await;
        assert!(refused.contains("rebuild start"), "{refused}");
        stack.append("order-2", &[tested(&json!(4))]).await;
        publish(stack, "order-2", &[4]).await;
        wait_for(stack, "order-2", "1,2,3,4").await;
        stack.projector(TALLY).args(["rebuild", "start", "tally"]).succeed().await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1"));
        assert!(parked(stack).await.is_empty());
    })
    .await;
}
