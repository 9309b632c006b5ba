//! The relay as a process.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use harness::{Mode, Proxy, Stack, Tap, event, eventually};
use serde_json::json;
use sqlx::Executor;
use tokio::time::sleep;

const CONFIRMED: &str = "outbox_relay_messages_published_total{outcome=\"confirmed\"}";
const RETURNED: &str = "outbox_relay_messages_published_total{outcome=\"returned\"}";

/// Appends `events` events to each of `streams` streams, with one statement.
pub(crate) async fn fill(stack: &Stack, category: &str, streams: usize, events: usize) {
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), $3 || '-' || s, v, 'Tested', jsonb_build_object('n', v)
         FROM generate_series(1, $2) v CROSS JOIN generate_series(1, $1) s
         ORDER BY v, s",
    )
    .bind(i64::try_from(streams).unwrap())
    .bind(i64::try_from(events).unwrap())
    .bind(category)
    .execute(&mut stack.postgres().await)
    .await
    .unwrap();
}

pub(crate) async fn unprocessed(stack: &Stack) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM outbox WHERE processed_at IS NULL")
        .fetch_one(&mut stack.postgres().await)
        .await
        .unwrap()
}

pub(crate) async fn all_processed(stack: &Stack) {
    eventually("every event is processed", async || (unprocessed(stack).await == 0).then_some(()))
        .await;
}

/// A committed event is published, marked in the outbox, and counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_committed_event_is_published_and_marked() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let relay = stack.relay().start_ready().await;
        stack.append("order-1", &[event("A", &json!({})), event("B", &json!({}))]).await;
        let seen = tap.wait_for(2).await;
        let versions: Vec<_> = seen.iter().map(|m| (m.stream_id.as_str(), m.version)).collect();
        assert_eq!(versions, [("order-1", 1), ("order-1", 2)]);
        all_processed(stack).await;
        eventually("the metric counts the events", async || {
            (relay.metric(CONFIRMED).await > 1.0).then_some(())
        })
        .await;
    })
    .await;
}

/// E11: four relays publish each stream in order. With locks on single rows, up to a fifth of the
/// events are out of order. With lanes, none is.
#[tokio::test(flavor = "multi_thread")]
async fn e11_four_relays_publish_each_stream_in_order_and_once() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        fill(stack, "order", 200, 100).await;
        let relays = join_all((0..4).map(async |_| stack.relay().start_ready().await)).await;
        let seen = tap.wait_for(20_000).await;
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
        assert_eq!(tap.seen().len(), 20_000, "no duplicates without a fault");
        let busy = join_all(relays.iter().map(|relay| relay.metric(CONFIRMED))).await;
        assert!(
            busy.iter().filter(|count| **count > 0.0).count() > 1,
            "one relay published everything: {busy:?}"
        );
    })
    .await;
}

/// Killed relays lose no event. The last copies of the events of a stream are in order.
#[tokio::test(flavor = "multi_thread")]
async fn relays_killed_at_random_lose_nothing_and_keep_the_order() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        fill(stack, "order", 100, 100).await;
        let mut relays = [stack.relay().start(), stack.relay().start()];
        for round in 0..8 {
            sleep(Duration::from_millis(rand::random_range(50..400))).await;
            let relay = &mut relays[round % 2];
            relay.kill().await;
            relay.restart();
        }
        let seen = tap.wait_for(10_000).await;
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
        let different: HashSet<_> = seen.iter().map(|message| &message.event_id).collect();
        assert_eq!(different.len(), 10_000);
    })
    .await;
}

/// An event without a queue holds its stream until a queue is bound. Other streams continue.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_queue_waits_for_one_and_holds_only_its_stream() {
    Stack::run(async |stack| {
        let relay = stack.relay().start_ready().await;
        stack.append("order-1", &[event("A", &json!({})), event("B", &json!({}))]).await;
        eventually("the relay has recorded the error", async || {
            (relay.metric(RETURNED).await > 0.0).then_some(())
        })
        .await;
        assert_eq!(unprocessed(stack).await, 2);
        let (error,): (String,) = sqlx::query_as("SELECT last_error FROM outbox_holds")
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap();
        assert!(error.starts_with("no queue is bound for routing key order.A"), "{error}");

        // A later event of the stream waits for the first.
        stack.append("order-1", &[event("C", &json!({}))]).await;
        let tap = Tap::open(stack).await;
        let seen = tap.wait_for(3).await;
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
        let holds: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox_holds")
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap();
        assert_eq!(holds, 0);
    })
    .await;
}

/// Streams that wait for a queue must not delay other streams.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_streams_do_not_delay_others() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        // Each lane has more waiting streams than a batch can hold.
        connection
            .execute(
                "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
                 SELECT gen_random_uuid(), 'unheard-' || s, 1, 'A', '{}'
                 FROM generate_series(1, 3000) s",
            )
            .await
            .unwrap();
        let channel = stack.amqp().await.create_channel().await.unwrap();
        stack.broker().await.declare_exchange("events").await.unwrap();
        let durable = lapin::options::QueueDeclareOptions::durable();
        channel.queue_declare("heard".into(), durable, <_>::default()).await.unwrap();
        let (queue, exchange) = ("heard".into(), "events".into());
        channel
            .queue_bind(queue, exchange, "order.#".into(), <_>::default(), <_>::default())
            .await
            .unwrap();
        let _relay =
            stack.relay().env("OUTBOX_RELAY__RELAY__BATCH_SIZE", "100").start_ready().await;
        fill(stack, "order", 50, 4).await;
        eventually("the orders are published", async || {
            let pending: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM outbox
                 WHERE processed_at IS NULL AND stream_id LIKE 'order-%'",
            )
            .fetch_one(&mut connection)
            .await
            .unwrap();
            (pending == 0).then_some(())
        })
        .await;
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM outbox WHERE processed_at IS NULL AND stream_id LIKE 'unheard-%'",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(waiting, 3000);
    })
    .await;
}

/// An event above the size limit holds its stream. Other streams continue.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_large_holds_only_its_stream() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let large = json!({ "text": "x".repeat(5_000) });
        stack.append("order-1", &[event("A", &json!({})), event("B", &large)]).await;
        stack.append("order-1", &[event("C", &json!({}))]).await;
        stack.append("order-2", &[event("A", &json!({}))]).await;
        let limit = "OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES";
        let mut relay = stack.relay().env(limit, "4000").start_ready().await;
        let seen = tap.wait_for(2).await;
        let streams: HashSet<_> = seen.iter().map(|m| (m.stream_id.as_str(), m.version)).collect();
        assert_eq!(streams, HashSet::from([("order-1", 1), ("order-2", 1)]));
        let error = eventually("the stream waits", async || {
            sqlx::query_scalar::<_, String>("SELECT last_error FROM outbox_holds")
                .fetch_optional(&mut stack.postgres().await)
                .await
                .unwrap()
        })
        .await;
        assert!(error.contains("and 4000 are allowed"), "{error}");
        assert_eq!(unprocessed(stack).await, 2);

        // With a larger limit the stream continues in order.
        relay.terminate().await;
        let _relay = stack.relay().start_ready().await;
        let seen = tap.wait_for(4).await;
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
        all_processed(stack).await;
    })
    .await;
}

/// The relay publishes the events of committed transactions only.
#[tokio::test(flavor = "multi_thread")]
async fn rolled_back_events_are_never_published() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let _relay = stack.relay().start_ready().await;
        let mut connection = stack.postgres().await;
        for number in 0..20 {
            connection.execute("BEGIN").await.unwrap();
            let events = json!([event("A", &json!({}))]);
            let stream = format!("order-{number}");
            harness::append(&mut connection, &stream, None, &events).await.unwrap();
            let end = if number % 2 == 0 { "COMMIT" } else { "ROLLBACK" };
            connection.execute(end).await.unwrap();
        }
        let seen = tap.wait_for(10).await;
        all_processed(stack).await;
        let even = |stream: &str| stream["order-".len()..].parse::<u32>().unwrap() % 2 == 0;
        assert!(seen.iter().all(|message| even(&message.stream_id)));
        assert_eq!(tap.seen().len(), 10);
    })
    .await;
}

/// The relay publishes a row that an application without an event store inserts into the outbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_integration_event_is_published() {
    Stack::run(async |stack| {
        let connection = stack.broker().await;
        connection.declare_exchange("events").await.unwrap();
        let queue = broker::Queue {
            name: "mail".to_owned(),
            dead_letters: "mail.dead".to_owned(),
            bindings: vec![broker::Binding { exchange: "events".into(), key: "mail.#".into() }],
        };
        connection.declare_queue(&queue).await.unwrap();
        let _relay = stack.relay().start_ready().await;
        stack
            .postgres()
            .await
            .execute(
                "INSERT INTO outbox (event_id, event_type, routing_key, payload)
                 VALUES ('018f4e3a-0000-7000-8000-000000000001', 'MailRequested',
                         'mail.requested', '{\"to\": \"zoe@example.org\"}')",
            )
            .await
            .unwrap();
        let mut consumer = connection.consumer("mail", 10).await.unwrap();
        let delivery = consumer.next(1).await.unwrap().remove(0);
        let received = delivery.message.decode().unwrap();
        assert_eq!(received.event_type.as_str(), "MailRequested");
        assert_eq!(received.stream_id(), None);
        assert_eq!(received.data.as_str(), r#"{"to": "zoe@example.org"}"#);
        all_processed(stack).await;
    })
    .await;
}

/// Each server in turn becomes unreachable under load, and returns.
#[tokio::test(flavor = "multi_thread")]
async fn the_relay_recovers_from_each_outage() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let (postgres, postgres_url) = Proxy::before(&stack.postgres_url).await;
        let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let relay = stack
            .relay()
            .env("EVENT_STORE_URL", &postgres_url)
            .env("AMQP_URL", &amqp_url)
            // Short timeouts detect a silent server soon.
            .env("OUTBOX_RELAY__POSTGRES__STATEMENT_TIMEOUT", "1s")
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "2s")
            .start_ready()
            .await;
        let mut expected = 0;
        for (proxy, component) in [(&postgres, "postgresql"), (&rabbitmq, "rabbitmq")] {
            for mode in [Mode::Reset, Mode::BlackHole] {
                proxy.set(mode);
                fill_more(stack, &mut expected).await;
                eventually("readiness reports the outage", async || {
                    let (status, body) = relay.get("/readyz").await?;
                    let report: serde_json::Value = serde_json::from_str(&body).ok()?;
                    let component = &report["components"][component];
                    (status == 503 && component["ok"] == false).then_some(())
                })
                .await;
                proxy.set(Mode::Pass);
                tap.wait_for(expected).await;
                relay.ready().await;
            }
            proxy.cut();
            fill_more(stack, &mut expected).await;
            tap.wait_for(expected).await;
        }
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_last_copies(&tap.seen()), 0);
    })
    .await;
}

async fn fill_more(stack: &Stack, expected: &mut usize) {
    for number in 0..20 {
        let stream = format!("order-{number}");
        stack.append(&stream, &[event("A", &json!({})), event("B", &json!({}))]).await;
        *expected += 2;
    }
}

/// SIGTERM ends the relay in time. Method: with idle, silent and unreachable servers.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_relay_in_time_in_every_state() {
    Stack::run(async |stack| {
        let (postgres, postgres_url) = Proxy::before(&stack.postgres_url).await;
        let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let through =
            stack.relay().env("EVENT_STORE_URL", &postgres_url).env("AMQP_URL", &amqp_url);
        let limit = Duration::from_secs(10);
        for (postgres_mode, rabbitmq_mode) in [
            (Mode::Pass, Mode::Pass),
            (Mode::BlackHole, Mode::Pass),
            (Mode::Pass, Mode::BlackHole),
            (Mode::Reset, Mode::Reset),
        ] {
            postgres.set(Mode::Pass);
            rabbitmq.set(Mode::Pass);
            let mut relay = through.start_ready().await;
            postgres.set(postgres_mode);
            rabbitmq.set(rabbitmq_mode);
            fill_more(stack, &mut 0).await;
            sleep(Duration::from_millis(300)).await;
            let (status, after) = relay.terminate().await;
            assert_eq!(status.code(), Some(0), "{postgres_mode:?} {rabbitmq_mode:?}");
            assert!(after < limit, "{after:?} with {postgres_mode:?} {rabbitmq_mode:?}");
        }
    })
    .await;
}

/// A stopping relay marks the confirmed events, so a restart publishes no duplicates.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_makes_no_duplicates() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        fill(stack, "order", 100, 200).await;
        for _ in 0..6 {
            let mut relay = stack.relay().start_ready().await;
            sleep(Duration::from_millis(rand::random_range(20..200))).await;
            let (status, _) = relay.terminate().await;
            assert_eq!(status.code(), Some(0));
        }
        let _relay = stack.relay().start();
        let seen = tap.wait_for(20_000).await;
        all_processed(stack).await;
        assert_eq!(tap.seen().len(), 20_000);
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
    })
    .await;
}
