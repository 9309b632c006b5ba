//! Faults of the servers and the network. After each, the relay has published everything in order
//! without help.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Cut, Daemon, Mode, Proxy, Side, Stack, Tap, event, eventually};
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use sqlx::Executor;
use tokio::time::sleep;

use crate::relay::{all_processed, fill, unprocessed};

/// The relay must publish again within this time after an outage. Measured times are well below 5
/// s. The rest allows for a busy machine.
const RECOVERY_LIMIT: Duration = Duration::from_secs(10);

/// A relay that reaches each server through a proxy and detects a silent server soon.
struct Disturbed {
    postgres: Proxy,
    rabbitmq: Proxy,
    relay: Daemon,
    tap: Tap,
    expected: usize,
}

impl Disturbed {
    async fn start(stack: &Stack) -> Self {
        let tap = Tap::open(stack).await;
        let (postgres, postgres_url) = Proxy::before(&stack.postgres_url).await;
        let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let relay = stack
            .relay()
            .env("EVENT_STORE_URL", &postgres_url)
            .env("AMQP_URL", &amqp_url)
            .env("OUTBOX_RELAY__POSTGRES__STATEMENT_TIMEOUT", "1s")
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "2s")
            // The default value, because the test measures the recovery time.
            .env("OUTBOX_RELAY__RELAY__RECONNECT_MAX", "4s")
            .start_ready()
            .await;
        Self { postgres, rabbitmq, relay, tap, expected: 0 }
    }

    /// Appends to many streams.
    async fn append(&mut self, stack: &Stack) {
        for number in 0..20 {
            let events = [event("A", &json!({})), event("B", &json!({}))];
            stack.append(&format!("order-{number}"), &events).await;
            self.expected += events.len();
        }
    }

    /// Waits until every appended event is published. Returns how long that took.
    async fn recovered(&self, what: &str) {
        let lifted = Instant::now();
        self.tap.wait_for(self.expected).await;
        let after = lifted.elapsed();
        println!("{what}: published again after {after:?}");
        assert!(after < RECOVERY_LIMIT, "{what}: {after:?}");
        self.relay.ready().await;
    }

    async fn finish(self, stack: &Stack) {
        all_processed(stack).await;
        let seen = self.tap.seen();
        println!("{} events, {} duplicates", self.expected, seen.len() - self.expected);
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
        let holds: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox_holds")
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap();
        assert_eq!(holds, 0, "an outage must hold no stream");
    }

    async fn says_that_it_fails(&self, component: &str) {
        eventually(&format!("{component} shows as failing"), async || {
            let (status, body) = self.relay.get("/readyz").await?;
            let report: Value = serde_json::from_str(&body).ok()?;
            (status == 503 && report["components"][component]["ok"] == false).then_some(())
        })
        .await;
    }
}

/// The relay detects a connection that is silent in one direction, and recovers.
#[tokio::test(flavor = "multi_thread")]
async fn black_holes_in_one_direction() {
    Stack::run(async |stack| {
        let mut disturbed = Disturbed::start(stack).await;
        for component in ["postgresql", "rabbitmq"] {
            for side in [Side::Client, Side::Server] {
                let proxy = |disturbed: &Disturbed, mode| match component {
                    "postgresql" => disturbed.postgres.set(mode),
                    _ => disturbed.rabbitmq.set(mode),
                };
                proxy(&disturbed, Mode::BlackHoleTowards(side));
                disturbed.append(stack).await;
                disturbed.says_that_it_fails(component).await;
                proxy(&disturbed, Mode::Pass);
                disturbed.recovered(&format!("{component}, nothing reaches the {side:?}")).await;
            }
        }
        disturbed.finish(stack).await;
    })
    .await;
}

/// Slow connections cause neither failures nor duplicates.
#[tokio::test(flavor = "multi_thread")]
async fn slow_and_sliced_connections() {
    Stack::run(async |stack| {
        let mut disturbed = Disturbed::start(stack).await;
        for mode in [Mode::Latency(Duration::from_millis(50)), Mode::Slice(7)] {
            disturbed.postgres.set(mode);
            disturbed.rabbitmq.set(mode);
            // New connections are slow, too.
            disturbed.append(stack).await;
            disturbed.tap.wait_for(disturbed.expected).await;
            disturbed.relay.ready().await;
        }
        disturbed.postgres.set(Mode::Pass);
        disturbed.rabbitmq.set(Mode::Pass);
        assert_eq!(
            disturbed.tap.seen().len(),
            disturbed.expected,
            "a slow connection must cause no duplicates"
        );
        disturbed.finish(stack).await;
    })
    .await;
}

/// The connection ends at a COMMIT or at a confirm, so the relay does not know the outcome.
#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_at_commit_and_at_a_confirm() {
    Stack::run(async |stack| {
        let mut disturbed = Disturbed::start(stack).await;
        for round in 1..=3 {
            for cut in [Cut::Commit, Cut::CommitAnswer, Cut::Confirm] {
                let cuts =
                    |disturbed: &Disturbed| disturbed.postgres.cuts() + disturbed.rabbitmq.cuts();
                let before = cuts(&disturbed);
                disturbed.postgres.cut_at(cut);
                disturbed.rabbitmq.cut_at(cut);
                disturbed.append(stack).await;
                eventually(&format!("{cut:?} happens"), async || {
                    (cuts(&disturbed) > before).then_some(())
                })
                .await;
                disturbed.recovered(&format!("{cut:?}, round {round}")).await;
            }
        }
        disturbed.finish(stack).await;
    })
    .await;
}

/// The relay recovers after the broker loses connections, bindings or queues.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_closes_its_connections_and_loses_queues_and_bindings() {
    Stack::run(async |stack| {
        let mut disturbed = Disturbed::start(stack).await;
        disturbed.append(stack).await;
        disturbed.recovered("start").await;

        // These are all connections except the test's.
        let path = format!("vhosts/{}/connections", stack.name());
        let relays = eventually("the connections are listed", async || {
            let all = stack.manage("GET", &path, &Value::Null).await;
            let name = |connection: &Value| {
                let own = connection["client_properties"]["connection_name"] == "outbox-relay";
                own.then(|| connection["name"].as_str().map(str::to_owned)).flatten()
            };
            let names: Vec<String> = all.as_array()?.iter().filter_map(name).collect();
            (names.len() >= 2).then_some(names)
        })
        .await;
        for name in relays {
            let name = name.replace(' ', "%20").replace('>', "%3E");
            stack.manage("DELETE", &format!("connections/{name}"), &Value::Null).await;
        }
        disturbed.append(stack).await;
        disturbed.recovered("connections closed by the broker").await;

        let channel = stack.amqp().await.create_channel().await.unwrap();
        let (queue, exchange) = ("tap", "events");
        channel
            .queue_unbind(queue.into(), exchange.into(), "#".into(), FieldTable::default())
            .await
            .unwrap();
        disturbed.append(stack).await;
        eventually("events without a queue wait", async || {
            (unprocessed(stack).await == 40).then_some(())
        })
        .await;
        let options = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.into(), "#".into(), options, FieldTable::default())
            .await
            .unwrap();
        disturbed.recovered("binding removed").await;

        // The first tap lost its queue.
        all_processed(stack).await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        stack.append("order-99", &[event("A", &json!({}))]).await;
        eventually("the event waits", async || (unprocessed(stack).await == 1).then_some(())).await;
        channel
            .queue_declare("other".into(), QueueDeclareOptions::durable(), FieldTable::default())
            .await
            .unwrap();
        channel
            .queue_bind("other".into(), exchange.into(), "#".into(), options, FieldTable::default())
            .await
            .unwrap();
        disturbed.finish(stack).await;
    })
    .await;
}

/// PostgreSQL ends the relay's connections, and refuses writes for a while.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_ends_connections_and_turns_read_only() {
    Stack::run(async |stack| {
        let mut disturbed = Disturbed::start(stack).await;
        let mut connection = stack.postgres().await;
        for _ in 0..3 {
            disturbed.append(stack).await;
            connection
                .execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'",
                )
                .await
                .unwrap();
            disturbed.recovered("connections ended by PostgreSQL").await;
        }
        let alter = format!("ALTER DATABASE {} SET default_transaction_read_only = ", stack.name());
        let set = async |value: &str| {
            let mut other = stack.postgres().await;
            other.execute("SET default_transaction_read_only = off").await.unwrap();
            other.execute(sqlx::AssertSqlSafe(format!("{alter}{value}"))).await.unwrap();
        };
        set("on").await;
        connection
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'",
            )
            .await
            .unwrap();
        eventually("readiness names the reason", async || {
            let (status, body) = disturbed.relay.get("/readyz").await?;
            (status == 503 && body.contains("is a standby or read-only")).then_some(())
        })
        .await;
        set("off").await;
        disturbed.append(stack).await;
        disturbed.recovered("read-only PostgreSQL").await;
        disturbed.finish(stack).await;
    })
    .await;
}

/// SIGTERM ends a relay in time, whatever its state. Method: 50 relays with disturbed servers, each
/// stopped after a random time.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_always_ends_the_relay_in_time() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let modes = [
            Mode::Pass,
            Mode::Reset,
            Mode::BlackHole,
            Mode::BlackHoleTowards(Side::Client),
            Mode::BlackHoleTowards(Side::Server),
        ];
        let states: Vec<_> =
            modes.iter().flat_map(|first| modes.map(|second| (*first, second))).collect();
        let mut slowest = Duration::ZERO;
        // A few relays run at a time, each with its own proxies.
        for group in [&states[..], &states[..]].concat().chunks(5) {
            let ends = group.iter().map(async |(postgres_mode, rabbitmq_mode)| {
                let (postgres, postgres_url) = Proxy::before(&stack.postgres_url).await;
                let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
                let relay = stack.relay().env("EVENT_STORE_URL", &postgres_url);
                let mut relay = relay.env("AMQP_URL", &amqp_url).start_ready().await;
                postgres.set(*postgres_mode);
                rabbitmq.set(*rabbitmq_mode);
                stack.append("order-1", &[event("A", &json!({}))]).await;
                sleep(Duration::from_millis(rand::random_range(0..500))).await;
                let (status, after) = relay.terminate().await;
                assert_eq!(status.code(), Some(0), "{postgres_mode:?} {rabbitmq_mode:?}");
                after
            });
            slowest = join_all(ends).await.into_iter().fold(slowest, Duration::max);
        }
        println!("50 of 50 ended, the slowest after {slowest:?}");
        assert!(slowest < Duration::from_secs(10), "{slowest:?}");
        let _relay = stack.relay().start();
        tap.wait_for(50).await;
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_last_copies(&tap.seen()), 0);
    })
    .await;
}

/// The relay works through a pooler that loses session state and prepared statements between
/// transactions.
#[tokio::test(flavor = "multi_thread")]
async fn the_relay_works_through_a_pooler_in_transaction_mode() {
    Stack::run(async |stack| {
        let Some((_pooler, url)) = harness::PgBouncer::before(stack).await else {
            println!("SKIPPED: PGBOUNCER does not name a program");
            return;
        };
        let tap = Tap::open(stack).await;
        let relay = stack.relay().env("EVENT_STORE_URL", &url);
        // The listener connects to the server directly.
        let relay = relay
            .env("OUTBOX_RELAY__RELAY__NOTIFY", "true")
            .env("OUTBOX_RELAY__POSTGRES__LISTEN_URL", &stack.postgres_url);
        let relays = [relay.start_ready().await, relay.start_ready().await];
        fill(stack, "order", 50, 40).await;
        stack.append("mail-1", &[event("A", &json!({}))]).await;
        let seen = tap.wait_for(2_001).await;
        all_processed(stack).await;
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
        assert_eq!(tap.seen().len(), 2_001);
        for relay in &relays {
            let log = relay.log();
            assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        }
        let status = stack.relay().env("EVENT_STORE_URL", &url).arg("status").try_run().await;
        assert!(status.0, "{}", status.1);
        stack.relay().env("EVENT_STORE_URL", &url).arg("reconcile").succeed().await;
    })
    .await;
}
