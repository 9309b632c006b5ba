//! The shop of `config/projections`, compared with a sequential fold of the event store.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Stack, eventually};
use sqlx::AssertSqlSafe;
use sqlx::types::BigDecimal;
use tokio::time::sleep;

const SHOP: &str = "config/projections";
const EVENTS: i64 = 6_000;

/// The stream, type, day, customer, amount and total of an event.
type Stored = (String, String, String, Option<String>, Option<BigDecimal>, Option<BigDecimal>);

#[derive(Debug, Default, Clone, PartialEq)]
struct Order {
    status: Cow<'static, str>,
    total: BigDecimal,
    paid: BigDecimal,
    refunded: BigDecimal,
    parcels: i32,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Customer {
    orders: i32,
    cancelled: i32,
    paid: BigDecimal,
    refunded: BigDecimal,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Day {
    payments: i32,
    paid: BigDecimal,
    refunds: i32,
    refunded: BigDecimal,
}

#[derive(Debug, Default, PartialEq)]
struct Shop {
    orders: BTreeMap<String, Order>,
    customers: BTreeMap<String, Customer>,
    days: BTreeMap<String, Day>,
}

/// The expected read models: a sequential fold of the events.
async fn fold(stack: &Stack) -> Shop {
    let events: Vec<Stored> = sqlx::query_as(
        "SELECT stream_id, event_type, to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
                coalesce(data->>'customer_id', data->'customer'->>'id') AS customer,
                (data->>'amount')::numeric AS amount, (data->>'total')::numeric AS total
         FROM events ORDER BY position",
    )
    .fetch_all(&mut stack.postgres().await)
    .await
    .unwrap();
    assert_eq!(i64::try_from(events.len()).unwrap(), EVENTS);
    let mut shop = Shop::default();
    for (stream_id, event_type, day, customer, amount, total) in events {
        let order = shop.orders.entry(stream_id).or_default();
        let customer = customer.map(|id| shop.customers.entry(id).or_default());
        let amount = amount.unwrap_or_default();
        match event_type.as_str() {
            "OrderPlaced" => {
                order.status = "placed".into();
                order.total = total.unwrap();
                customer.unwrap().orders += 1;
            }
            "OrderPaid" => {
                order.status = "paid".into();
                order.paid += &amount;
                customer.unwrap().paid += &amount;
                let day = shop.days.entry(day).or_default();
                day.payments += 1;
                day.paid += amount;
            }
            "OrderPacked" => order.status = "packed".into(),
            "OrderShipped" => {
                order.status = "shipped".into();
                order.parcels += 1;
            }
            "OrderCancelled" => {
                order.status = "cancelled".into();
                customer.unwrap().cancelled += 1;
            }
            "OrderRefunded" => {
                order.status = "refunded".into();
                order.refunded += &amount;
                customer.unwrap().refunded += &amount;
                let day = shop.days.entry(day).or_default();
                day.refunds += 1;
                day.refunded += amount;
            }
            other => panic!("{other}"),
        }
    }
    shop
}

async fn read_models(stack: &Stack) -> Shop {
    let mut mysql = stack.mysql().await;
    let orders: Vec<(String, String, BigDecimal, BigDecimal, BigDecimal, i32)> = sqlx::query_as(
        "SELECT order_id, status, total, paid, refunded, parcels FROM order_summary",
    )
    .fetch_all(&mut mysql)
    .await
    .unwrap();
    let customers: Vec<(String, i32, i32, BigDecimal, BigDecimal)> =
        sqlx::query_as("SELECT customer_id, orders, cancelled, paid, refunded FROM customer_value")
            .fetch_all(&mut mysql)
            .await
            .unwrap();
    let days: Vec<(String, i32, BigDecimal, i32, BigDecimal)> = sqlx::query_as(
        "SELECT CAST(day AS CHAR), payments, paid, refunds, refunded FROM daily_revenue",
    )
    .fetch_all(&mut mysql)
    .await
    .unwrap();
    Shop {
        orders: orders
            .into_iter()
            .map(|(id, status, total, paid, refunded, parcels)| {
                (id, Order { status: status.into(), total, paid, refunded, parcels })
            })
            .collect(),
        customers: customers
            .into_iter()
            .map(|(id, orders, cancelled, paid, refunded)| {
                (id, Customer { orders, cancelled, paid, refunded })
            })
            .collect(),
        days: days
            .into_iter()
            .map(|(day, payments, paid, refunds, refunded)| {
                (day, Day { payments, paid, refunds, refunded })
            })
            .collect(),
    }
}

/// Each read model equals a sequential fold, although daemons are killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_shop_is_a_sequential_fold_while_daemons_are_killed() {
    Stack::run(async |stack| {
        let projector = stack.projector(SHOP);
        projector.clone().arg("migrate").succeed().await;
        let mut daemons = [
            stack.relay().start_ready().await,
            stack.relay().start_ready().await,
            projector.start_ready().await,
            projector.start_ready().await,
        ];
        let generate = stack.workload().arg("generate").arg("--events").arg(EVENTS.to_string());
        let generate = generate.arg("--streams").arg("900").arg("--rate").arg("1500");
        let disturb = async {
            for round in 0..10 {
                sleep(Duration::from_millis(rand::random_range(100..500))).await;
                let daemon = &mut daemons[round % 4];
                daemon.kill().await;
                daemon.restart();
            }
        };
        tokio::join!(generate.succeed(), disturb);
        for projection in ["order_summary", "customer_value", "daily_revenue"] {
            let query = format!("SELECT CAST(SUM(version) AS SIGNED) FROM {projection}__streams");
            let mut mysql = stack.mysql().await;
            eventually(&format!("{projection} is complete"), async || {
                let applied: Option<i64> = sqlx::query_scalar(AssertSqlSafe(query.clone()))
                    .fetch_one(&mut mysql)
                    .await
                    .unwrap();
                (applied == Some(EVENTS)).then_some(())
            })
            .await;
        }
        let (expected, found) = (fold(stack).await, read_models(stack).await);
        assert_eq!(found.orders, expected.orders);
        assert_eq!(found.customers, expected.customers);
        assert_eq!(found.days, expected.days);
    })
    .await;
}

/// A projection in Rust, in its own program, equals the result of an SQL query of the event store.
#[tokio::test(flavor = "multi_thread")]
async fn a_projection_in_rust_is_a_sequential_fold() {
    Stack::run(async |stack| {
        let folder = "crates/projector/examples/projections";
        let projector = stack.projector_program("examples/shop", folder);
        projector.clone().arg("migrate").succeed().await;
        let mut relay = stack.relay().start_ready().await;
        let mut daemon = projector.start_ready().await;
        let generate = stack.workload().args(["generate", "--events", "3000", "--seed", "5"]);
        generate.succeed().await;
        daemon.kill().await;
        daemon.restart();
        let wanted: Vec<(String, Option<i64>)> = sqlx::query_as(
            "SELECT paid.stream_id, floor(extract(epoch FROM
                        (SELECT min(s.occurred_at) FROM events s
                         WHERE s.stream_id = paid.stream_id AND s.event_type = 'OrderShipped'
                           AND s.stream_version > paid.version) - paid.at))::bigint
             FROM (SELECT DISTINCT ON (stream_id) stream_id, stream_version AS version, occurred_at AS at
                   FROM events WHERE event_type = 'OrderPaid' ORDER BY stream_id, stream_version) AS paid
             ORDER BY paid.stream_id COLLATE \"C\"",
        )
        .fetch_all(&mut stack.postgres().await)
        .await
        .unwrap();
        assert!(wanted.len() > 50);
        eventually("the read model equals the fold", async || {
            let found: Vec<(String, Option<i64>)> =
                sqlx::query_as("SELECT order_id, seconds FROM delivery_times ORDER BY order_id")
                    .fetch_all(&mut stack.mysql().await)
                    .await
                    .unwrap();
            (found == wanted).then_some(())
        })
        .await;
        relay.terminate().await;
    })
    .await;
}

/// The examples in the documentation are correct. Method: they are files, and MySQL checks them.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_examples_are_right() {
    let documented = std::fs::read_to_string(harness::root().join("PROJECTIONS.md")).unwrap();
    let folder = harness::root().join("config/examples");
    let mut examples = 0;
    for projection in std::fs::read_dir(&folder).unwrap() {
        for file in std::fs::read_dir(projection.unwrap().path()).unwrap() {
            let file = file.unwrap().path();
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(documented.contains(&text), "PROJECTIONS.md lacks {}", file.display());
        }
        examples += 1;
    }
    assert_eq!(examples, 10);
    Stack::run(async |stack| {
        let output = stack.projector("config/examples").arg("check").succeed().await;
        assert!(output.contains("10 projections: ok"), "{output}");
        assert!(
            output.contains(
                "orders_by_country: one batch runs at a time, because of OrderPlaced.sql:1:13: "
            ),
            "{output}"
        );
        assert!(output.contains("  AmountDeposited: many events at once"), "{output}");
        let reason = "  OrderPaid: event by event: OrderPaid.sql:7:25: ";
        assert!(output.contains(reason), "{output}");
    })
    .await;
}
