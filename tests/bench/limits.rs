//! Bare programs: the speed of the servers without our daemons.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::{ready, try_join_all};
use futures_util::{StreamExt, stream};
use lapin::ExchangeKind;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use harness::Stack;

/// Unconfirmed chunks at a time.
const WINDOW: usize = 8;
/// Messages per chunk.
const CHUNK: usize = 256;

/// Events per second.
pub(crate) fn rate(events: u32, took: Duration) -> f64 {
    f64::from(events) / took.as_secs_f64()
}

/// Binds a quorum queue to the exchange of the events.
pub(crate) async fn bind_queue(stack: &Stack, queue: &str) {
    let connection = stack.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare("events".into(), ExchangeKind::Topic, durable, FieldTable::default())
        .await
        .expect("the exchange");
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.into(), durable, arguments).await.expect("the queue");
    channel
        .queue_bind(
            queue.into(),
            "events".into(),
            "order.#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("the binding");
    connection.close(200, "bye".into()).await.expect("it closes");
}

/// Empties a queue.
pub(crate) async fn purge(stack: &Stack, queue: &str) {
    stack
        .manage(
            "DELETE",
            &format!("queues/{}/{queue}/contents", stack.name()),
            &serde_json::Value::Null,
        )
        .await;
}

/// Takes the published messages out of the queue, with all properties and headers.
pub(crate) async fn take(stack: &Stack, queue: &str, messages: u32) -> Vec<Delivery> {
    let connection = stack.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    let unlimited = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let taken: Vec<Delivery> = channel
        .basic_consume(queue.into(), "".into(), unlimited, FieldTable::default())
        .await
        .expect("a consumer")
        .map(|delivery| delivery.expect("a delivery"))
        .take(messages as usize)
        .collect()
        .await;
    connection.close(200, "bye".into()).await.expect("it closes");
    taken
}

/// The arrival time of each event of a sequence, by its `number` from 1.
pub(crate) async fn arrivals(stack: &Stack, queue: &str, messages: usize) -> HashMap<i64, Instant> {
    let connection = stack.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    let unlimited = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let arrived = channel
        .basic_consume(queue.into(), "".into(), unlimited, FieldTable::default())
        .await
        .expect("a consumer")
        .map(|delivery| {
            let now = Instant::now();
            let data = delivery.expect("a delivery").data;
            let data: serde_json::Value = serde_json::from_slice(&data).expect("JSON");
            (data["number"].as_i64().expect("a number"), now)
        })
        .filter(|(number, _)| ready(*number > 0))
        .take(messages)
        .collect()
        .await;
    connection.close(200, "bye".into()).await.expect("it closes");
    arrived
}

/// Publishes messages from memory with confirms.
pub(crate) async fn publish(stack: &Stack, messages: &[Delivery]) -> f64 {
    let connection = stack.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let begun = Instant::now();
    let published = stream::iter(messages.chunks(CHUNK)).map(async |chunk| {
        let sent = chunk.iter().map(|message| {
            channel.basic_publish(
                message.exchange.clone(),
                message.routing_key.clone(),
                BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
                &message.data,
                message.properties.clone(),
            )
        });
        let confirms = try_join_all(sent).await.expect("they are sent");
        for confirm in confirms {
            let confirm = confirm.await.expect("a confirm");
            assert!(confirm.is_ack(), "it is confirmed");
        }
    });
    published.buffered(WINDOW).collect::<Vec<()>>().await;
    let took = begun.elapsed();
    connection.close(200, "bye".into()).await.expect("it closes");
    rate(u32::try_from(messages.len()).unwrap_or(u32::MAX), took)
}

/// Claims and marks rows of the outbox without a broker.
pub(crate) async fn claim_and_mark(stack: &Stack, rows: u32) -> f64 {
    let mut connection = stack.postgres().await;
    let begun = Instant::now();
    let mut marked = 0;
    while marked < u64::from(rows) {
        let mut transaction = connection.begin().await.expect("a transaction");
        let claimed: Vec<(i64, String)> = sqlx::query_as(
            "SELECT id, payload::text FROM outbox
             WHERE processed_at IS NULL AND NOT held AND available_at IS NULL
             ORDER BY lane, id LIMIT 1000 FOR UPDATE SKIP LOCKED",
        )
        .fetch_all(&mut *transaction)
        .await
        .expect("rows");
        let ids: Vec<i64> = claimed.iter().map(|(id, _)| *id).collect();
        if ids.is_empty() {
            break;
        }
        let done = sqlx::query("UPDATE outbox SET processed_at = now() WHERE id = ANY ($1)")
            .bind(&ids)
            .execute(&mut *transaction)
            .await
            .expect("they are marked");
        marked += done.rows_affected();
        transaction.commit().await.expect("a commit");
    }
    rate(rows, begun.elapsed())
}

/// The parts of an event that a handler of `order_summary` needs.
pub(crate) struct Change {
    values: String,
}

/// Reads all events in pages; returns the rate and, with `keep`, the changes for an upsert of the same rows.
pub(crate) async fn read(stack: &Stack, events: u32, keep: bool) -> (f64, Vec<Change>) {
    let mut connection: PgConnection = stack.postgres().await;
    let (mut after, mut count, mut kept) = (0_i64, 0, Vec::new());
    let begun = Instant::now();
    loop {
        let page = sqlx::query(
            "SELECT position, event_id, stream_id, stream_version, event_type, schema_version,
                    data::text AS data, metadata::text AS metadata, occurred_at, recorded_at
             FROM events WHERE position > $1 ORDER BY position LIMIT 5000",
        )
        .bind(after)
        .fetch_all(&mut connection)
        .await
        .expect("events");
        let Some(last) = page.last() else { break };
        after = last.get("position");
        count += page.len();
        if keep {
            kept.extend(page.iter().map(change));
        }
    }
    let rate = rate(events, begun.elapsed());
    assert_eq!(count, events as usize, "all events are read");
    (rate, kept)
}

fn change(row: &sqlx::postgres::PgRow) -> Change {
    let data: serde_json::Value = serde_json::from_str(row.get::<&str, _>("data")).expect("JSON");
    let (stream_id, event_type): (&str, &str) = (row.get("stream_id"), row.get("event_type"));
    let occurred_at: chrono::DateTime<chrono::Utc> = row.get("occurred_at");
    let at = occurred_at.format("%Y-%m-%d %H:%M:%S%.6f");
    let amount = data["amount"].to_string();
    let text = |value: &serde_json::Value| {
        value.as_str().unwrap_or("none").replace('\\', "").replace('\'', "''")
    };
    let paid = if event_type == "OrderPaid" { &*amount } else { "0" };
    let refunded = if event_type == "OrderRefunded" { &*amount } else { "0" };
    let parcels = u8::from(event_type == "OrderShipped");
    let total = data["total"].as_f64().unwrap_or_default();
    Change {
        values: format!(
            "('{stream_id}','{}','{}','{event_type}','{}',{total:.2},{paid},{refunded},{parcels},\
             '{at}','{at}')",
            text(&data["customer"]["id"]),
            text(&data["customer"]["name"]),
            data["currency"].as_str().unwrap_or("EUR"),
        ),
    }
}

/// Upserts one row per event, a thousand rows per statement and transaction.
pub(crate) async fn upsert(stack: &Stack, changes: &[Change]) -> f64 {
    let mut connection = stack.mysql().await;
    connection.execute("DROP TABLE IF EXISTS bare").await.expect("no table");
    connection.execute("CREATE TABLE bare LIKE order_summary").await.expect("a table");
    let statements: Vec<String> = changes
        .chunks(1_000)
        .map(|page| {
            let rows: Vec<&str> = page.iter().map(|change| &*change.values).collect();
            format!(
                "INSERT INTO bare (order_id, customer_id, customer_name, status, currency, total, paid,
                                   refunded, parcels, placed_at, updated_at)
                 VALUES {} AS new
                 ON DUPLICATE KEY UPDATE status = new.status, paid = bare.paid + new.paid,
                     refunded = bare.refunded + new.refunded, parcels = bare.parcels + new.parcels,
                     updated_at = new.updated_at",
                rows.join(",")
            )
        })
        .collect();
    let begun = Instant::now();
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("an upsert");
    }
    rate(u32::try_from(changes.len()).unwrap_or(u32::MAX), begun.elapsed())
}
