//! Rows that an application inserts into the outbox.

use std::collections::BTreeMap;

use harness::{Stack, eventually};
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use serde::Deserialize;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Surprises, Verdict, corpus, refusal, written_out};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    columns: String,
    values: String,
}

/// Every row in the corpus is refused at its insert, parked or published unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_outbox() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let channel = everything(stack).await;
        let mut seen = BTreeMap::new();
        let mut connection = stack.postgres().await;
        let mut taken = Vec::new();
        for case in corpus::<Row>("outbox") {
            let id = Uuid::new_v4();
            let values = written_out(&case.input.values).replace("$id", &format!("'{id}'"));
            let columns = written_out(&case.input.columns);
            let insert = format!("INSERT INTO outbox ({columns}) VALUES ({values})");
            let inserted = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut connection).await;
            match inserted {
                Ok(_) => taken.push((case, id)),
                Err(error) => surprises.compare(&case, Verdict::Refuse, &refusal(&error)),
            }
        }
        let relay = stack.relay().env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "100000");
        let _relay = relay.env("OUTBOX_RELAY__RELAY__MAX_ATTEMPTS", "1").start_ready().await;
        for (case, id) in taken {
            let became = eventually(&case.name, async || {
                let row: (bool, Option<String>) = sqlx::query_as(
                    "SELECT o.processed_at IS NOT NULL,
                            (SELECT last_error FROM outbox_holds WHERE stream_key = $1::text)
                     FROM outbox o WHERE o.event_id = $1::uuid",
                )
                .bind(id.to_string())
                .fetch_one(&mut connection)
                .await
                .unwrap();
                match row {
                    (true, _) => Some((Verdict::Publish, String::new())),
                    (_, Some(error)) => Some((Verdict::Park, error)),
                    (false, None) => None,
                }
            });
            let (verdict, message) = became.await;
            surprises.compare(&case, verdict, &message);
            if verdict == Verdict::Publish {
                let (key, body) = eventually(&case.name, async || {
                    let get = channel.basic_get("all".into(), BasicGetOptions { no_ack: true });
                    if let Some(message) = get.await.unwrap() {
                        let id = message.properties.message_id().clone().unwrap().to_string();
                        let key = message.routing_key.to_string();
                        let before = seen.insert(id, (key, message.data.clone()));
                        assert_eq!(before, None, "{}: published twice", case.name);
                    }
                    seen.get(&id.to_string()).cloned()
                })
                .await;
                let row: (String, String) = sqlx::query_as(
                    "SELECT routing_key, payload::text FROM outbox WHERE event_id = $1",
                )
                .bind(id)
                .fetch_one(&mut connection)
                .await
                .unwrap();
                let body = String::from_utf8(body).unwrap();
                assert_eq!((key, body), row, "{}: the published message", case.name);
            }
        }
        surprises.assert_none();
    })
    .await;
}

/// Declares a queue that receives all messages. Returns a channel to get them.
async fn everything(stack: &Stack) -> Channel {
    let channel = stack.amqp().await.create_channel().await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let none = FieldTable::default;
    channel.exchange_declare("events".into(), ExchangeKind::Topic, durable, none()).await.unwrap();
    let options = QueueDeclareOptions::durable();
    channel.queue_declare("all".into(), options, none()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind("all".into(), "events".into(), "#".into(), bind, none()).await.unwrap();
    channel
}
