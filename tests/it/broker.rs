//! The publisher and the consumer, and the behaviours of lapin and RabbitMQ that they handle.

use std::collections::BTreeMap;
use std::time::Duration;

use broker::{Binding, Connection, Declared, Options, Outcome, Queue};
use domain_events::{HeaderValue, Message};
use futures_util::future::join_all;
use harness::{Mode, Proxy, Side, Stack, eventually};
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use uuid::Uuid;

const EXCHANGE: &str = "events";
const LIMIT: Duration = Duration::from_secs(30);

fn message(routing_key: &str, number: usize) -> Message {
    Message {
        routing_key: routing_key.to_owned(),
        message_id: Some(Uuid::new_v4().to_string()),
        body: number.to_string().into_bytes(),
        ..Message::default()
    }
}

/// Declares a queue for each routing key. The `full` queues reject every message.
async fn declare(stack: &Stack, queues: &[(&str, bool)]) {
    stack.broker().await.declare_exchange(EXCHANGE).await.unwrap();
    let channel = stack.amqp().await.create_channel().await.unwrap();
    for (key, full) in queues {
        let mut arguments = FieldTable::default();
        if *full {
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        }
        channel
            .queue_declare((*key).into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
        let options = QueueBindOptions::default();
        channel
            .queue_bind(
                (*key).into(),
                EXCHANGE.into(),
                (*key).into(),
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
}

fn count(outcomes: &[Outcome]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let name = match outcome {
            Outcome::Confirmed => "confirmed",
            Outcome::Returned => "returned",
            Outcome::Nacked => "nacked",
            Outcome::Refused(_) => "refused",
            Outcome::Unanswered => "unanswered",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// E1: if tasks share a channel, lapin reports a confirm to the wrong task. Each publisher has its own
/// channel, and publishing borrows it exclusively.
#[tokio::test(flavor = "multi_thread")]
async fn e1_publishers_side_by_side_get_their_own_confirms() {
    Stack::run_empty(async |stack| {
        declare(stack, &[("good", false), ("full", true)]).await;
        let connection = stack.broker().await;
        let publishers = (0..8).map(async |_| {
            let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
            let mut wrong = 0;
            for _ in 0..10 {
                let batch: Vec<_> = (0..200)
                    .map(|number| message(if number % 2 == 0 { "good" } else { "full" }, number))
                    .collect();
                let outcomes = publisher.publish(&batch).await.unwrap();
                for (message, outcome) in batch.iter().zip(outcomes) {
                    let expected = match message.routing_key.as_str() {
                        "good" => Outcome::Confirmed,
                        _ => Outcome::Nacked,
                    };
                    wrong += usize::from(outcome != expected);
                }
            }
            wrong
        });
        assert_eq!(join_all(publishers).await, [0; 8]);
    })
    .await;
}

/// E2: lapin attaches a returned message to the confirm of a neighbour. The publisher does not.
#[tokio::test(flavor = "multi_thread")]
async fn e2_a_returned_message_does_not_affect_its_neighbours() {
    Stack::run_empty(async |stack| {
        declare(stack, &[("good", false)]).await;
        let connection = stack.broker().await;
        let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
        for _ in 0..20 {
            let key = |number| if number % 7 == 0 { "nowhere" } else { "good" };
            let batch: Vec<_> = (0..500).map(|number| message(key(number), number)).collect();
            let outcomes = publisher.publish(&batch).await.unwrap();
            for (number, outcome) in outcomes.into_iter().enumerate() {
                let expected = if number % 7 == 0 { Outcome::Returned } else { Outcome::Confirmed };
                assert_eq!(outcome, expected, "message {number}");
            }
        }
    })
    .await;
}

/// E3: lapin's wait for all confirms hides negative ones. The publisher reports them.
#[tokio::test(flavor = "multi_thread")]
async fn e3_a_refusal_is_not_hidden() {
    Stack::run_empty(async |stack| {
        declare(stack, &[("good", false), ("full", true)]).await;
        let connection = stack.broker().await;
        let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
        let key = |number| if number < 500 { "full" } else { "good" };
        let batch: Vec<_> = (0..1_000).map(|number| message(key(number), number)).collect();
        let outcomes = publisher.publish(&batch).await.unwrap();
        assert_eq!(count(&outcomes), BTreeMap::from([("confirmed", 500), ("nacked", 500)]));
        assert!(outcomes[..500].iter().all(|outcome| *outcome == Outcome::Nacked));
    })
    .await;
}

/// The broker closes the channel when it cannot accept a message. The confirms of all other messages
/// on the channel are lost. The publisher still names the refused message alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_does_not_affect_its_neighbours() {
    Stack::run_empty(async |stack| {
        declare(stack, &[("good", false)]).await;
        let connection = stack.broker().await;
        let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
        let mut batch: Vec<_> = (0..300).map(|number| message("good", number)).collect();
        for poison in [7, 290] {
            // RabbitMQ requires a list here.
            let header = ("CC".into(), HeaderValue::Text("good".to_owned()));
            batch[poison].headers.extend([header]);
        }
        // The headers of this message exceed a frame.
        let wide = HeaderValue::Text("x".repeat(200_000));
        batch[100].headers.insert("wide".into(), wide);
        for _ in 0..2 {
            let outcomes = publisher.publish(&batch).await.unwrap();
            for (number, outcome) in outcomes.iter().enumerate() {
                let refused = matches!(outcome, Outcome::Refused(_));
                assert_eq!(refused, [7, 100, 290].contains(&number), "{number}: {outcome:?}");
                assert!(refused || *outcome == Outcome::Confirmed, "{number}: {outcome:?}");
            }
            // The second round omits the message that the publisher refuses before sending.
            batch[100].headers = batch[7].headers.clone();
        }
        let whole: Vec<_> = (0..300).map(|number| message("good", number)).collect();
        let outcomes = publisher.publish(&whole).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed));
    })
    .await;
}

/// A missing exchange is an error of the batch. No message is refused because of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_refuses_no_message() {
    Stack::run_empty(async |stack| {
        let connection = stack.broker().await;
        let mut publisher = connection.publisher("nowhere", LIMIT).await.unwrap();
        let batch: Vec<_> = (0..10).map(|number| message("good", number)).collect();
        publisher.publish(&batch).await.unwrap_err();
    })
    .await;
}

/// The consumer receives a batch in the order of publishing.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_arrives_in_its_order() {
    Stack::run_empty(async |stack| {
        declare(stack, &[("good", false)]).await;
        let connection = stack.broker().await;
        let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
        let mut consumer = connection.consumer("good", 2_000).await.unwrap();
        for _ in 0..3 {
            let batch: Vec<_> = (0..1_500).map(|number| message("good", number)).collect();
            publisher.publish(&batch).await.unwrap();
            let mut received = Vec::new();
            let mut receipts = Vec::new();
            while received.len() < batch.len() {
                for delivery in consumer.next(100).await.unwrap() {
                    received.push(delivery.message.body);
                    receipts.push(delivery.envelope.into_receipt());
                }
            }
            let sent: Vec<_> = batch.into_iter().map(|message| message.body).collect();
            assert!(received == sent);
            consumer.ack(receipts).await.unwrap();
        }
    })
    .await;
}

/// An acknowledgement settles only the deliveries that it names.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_can_be_settled_in_any_order() {
    Stack::run_empty(async |stack| {
        declare(stack, &[("good", false)]).await;
        let connection = stack.broker().await;
        let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
        let batch: Vec<_> = (0..10).map(|number| message("good", number)).collect();
        publisher.publish(&batch).await.unwrap();
        let mut consumer = connection.consumer("good", 100).await.unwrap();
        let mut deliveries = Vec::new();
        while deliveries.len() < 10 {
            deliveries.extend(consumer.next(10).await.unwrap());
        }
        // One call settles 0 to 2, two calls settle 5 and 7, and 3 is requeued. The others stay
        // unsettled.
        let (mut ack, mut back) = (Vec::new(), Vec::new());
        for (number, delivery) in deliveries.into_iter().enumerate() {
            match number {
                0..=2 | 5 | 7 => ack.push(delivery.envelope.into_receipt()),
                3 => back.push(delivery.envelope.into_receipt()),
                _ => {}
            }
        }
        consumer.ack(ack).await.unwrap();
        consumer.give_back(back).await.unwrap();
        drop(consumer);
        let mut consumer = connection.consumer("good", 100).await.unwrap();
        let mut left = Vec::new();
        while left.len() < 5 {
            left.extend(consumer.next(10).await.unwrap().into_iter().map(|d| d.message.body));
        }
        left.sort();
        assert_eq!(left, [b"3", b"4", b"6", b"8", b"9"]);
    })
    .await;
}

/// A queue can be declared again, unless its settings differ.
#[tokio::test(flavor = "multi_thread")]
async fn declaring_twice_is_harmless_and_other_settings_are_reported() {
    Stack::run_empty(async |stack| {
        let connection = stack.broker().await;
        connection.declare_exchange(EXCHANGE).await.unwrap();
        let queue = |name: &str| Queue {
            name: name.to_owned(),
            dead_letters: format!("{name}.dead"),
            bindings: vec![Binding { exchange: EXCHANGE.to_owned(), key: "order.#".to_owned() }],
        };
        assert!(connection.declare_queue(&queue("one")).await.unwrap().is_new, "the queue is new");
        let again = connection.declare_queue(&queue("one")).await.unwrap();
        assert_eq!(again, Declared { is_new: false, is_patient: false });
        assert_eq!(connection.ready_messages("one").await.unwrap(), Some(0));
        assert_eq!(connection.ready_messages("none").await.unwrap(), None);

        // As versions before the limit for disconnected consumers have declared it.
        let mut earlier = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        for (key, value) in [
            ("x-queue-type", text("quorum")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-delivery-limit", AMQPValue::LongLongInt(1_000)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text("old.dead")),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ] {
            earlier.insert(key.into(), value);
        }
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let durable = QueueDeclareOptions::durable();
        channel.queue_declare("old".into(), durable, earlier).await.unwrap();
        let kept = connection.declare_queue(&queue("old")).await.unwrap();
        // Versions before 4.3 do not know the argument, so they do not compare it either.
        let overview = stack.manage("GET", "overview", &serde_json::Value::Null).await;
        let version = overview["rabbitmq_version"].as_str().unwrap().split('.');
        let version: Vec<u32> = version.map_while(|number| number.parse().ok()).collect();
        let is_patient = version >= vec![4, 3];
        assert_eq!(kept, Declared { is_new: false, is_patient }, "{version:?}");

        declare(stack, &[("two", false)]).await;
        let error = connection.declare_queue(&queue("two")).await.unwrap_err();
        let message = error.to_string();
        assert!(message.contains("queue two exists in RabbitMQ with other settings"), "{message}");
        assert!(error.is_configuration());
    })
    .await;
}

/// A queue with ready or unsettled messages is not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_queue_is_deleted() {
    Stack::run_empty(async |stack| {
        let connection = stack.broker().await;
        connection.declare_exchange(EXCHANGE).await.unwrap();
        let bindings = vec![Binding { exchange: EXCHANGE.to_owned(), key: "a.#".to_owned() }];
        let queue = Queue { name: "one".to_owned(), dead_letters: "dead".to_owned(), bindings };
        connection.declare_queue(&queue).await.unwrap();
        let mut publisher = connection.publisher(EXCHANGE, LIMIT).await.unwrap();
        publisher.publish(&[message("a.A", 1)]).await.unwrap();
        let refused = async || {
            let error = connection.delete_empty_queue("one").await.unwrap_err();
            assert!(matches!(error, broker::Error::NotEmpty { .. }), "{error}");
        };
        refused().await;
        let mut consumer = connection.consumer("one", 10).await.unwrap();
        let delivered = consumer.next(10).await.unwrap();
        assert_eq!(connection.ready_messages("one").await.unwrap(), Some(0));
        refused().await;
        let receipts = delivered.into_iter().map(|it| it.envelope.into_receipt()).collect();
        consumer.ack(receipts).await.unwrap();
        consumer.close().await;
        connection.delete_empty_queue("one").await.unwrap();
        assert_eq!(connection.ready_messages("one").await.unwrap(), None);
    })
    .await;
}

/// A failed connection attempt must not prevent later ones or leave threads running. Method: a broker
/// that closes the connection during the handshake, and one that accepts it and sends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_connection_attempt_ends() {
    Stack::run_empty(async |stack| {
        let (proxy, url) = Proxy::before(&stack.amqp_url).await;
        let options = Options::parse(&url.into(), "test").unwrap();
        let modes = [
            Mode::HalfClose(Side::Client),
            Mode::HalfClose(Side::Server),
            Mode::BlackHoleTowards(Side::Client),
            Mode::BlackHole,
        ];
        for mode in modes {
            proxy.set(mode);
            let refused = join_all((0..4).map(|_| Connection::connect(&options))).await;
            assert!(refused.iter().all(Result::is_err), "{mode:?}");
            proxy.set(Mode::Pass);
            Connection::connect(&options).await.unwrap().close().await;
        }
        eventually("the threads of all attempts have ended", async || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names = tasks.filter_map(|task| std::fs::read(task.path().join("comm")).ok());
            (!names.any(|name| name.starts_with(b"lapin"))).then_some(())
        })
        .await;
    })
    .await;
}
