//! Several projectors of one projection.

use std::env;
use std::time::{Duration, Instant};

use harness::{Daemon, Proxy, Stack, eventually, within};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tokio::time::sleep;

use crate::projector::{TALLY, applied, publish, tested, wait_for};

const SPREAD: &str = "tests/projections/spread";
const SHARED: &str = "tests/projections/shared";
const PARTITIONS: usize = 8;

/// The number of events of a test. `TEST_EVENTS` overrides it.
fn events(default: usize) -> usize {
    env::var("TEST_EVENTS").ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

async fn status(stack: &Stack, folder: &str) -> Value {
    let output = stack.projector(folder).arg("status").arg("--json").output().await;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["projections"][0].clone()
}

/// Waits until each of this number of instances receives an even share of the queues.
async fn evenly_spread(stack: &Stack, instances: usize) -> Duration {
    let begun = Instant::now();
    within(Duration::from_secs(20), &format!("{instances} share the queues"), async || {
        let status = status(stack, SPREAD).await;
        let held: Vec<usize> = status["instances"]
            .as_array()?
            .iter()
            .map(|instance| instance["partitions"].as_array().map_or(0, Vec::len))
            .collect();
        let even = held.iter().all(|held| *held == PARTITIONS / instances);
        (held.len() == instances && even).then_some(())
    })
    .await;
    begun.elapsed()
}

/// Asserts that all versions of every stream were applied once and in order.
async fn all_in_order(stack: &Stack, streams: usize, versions: usize) {
    let wanted: Vec<String> = (1..=versions).map(|version| version.to_string()).collect();
    within(Duration::from_mins(4), "everything is applied", async || {
        let done: i64 =
            sqlx::query_scalar("SELECT CAST(COALESCE(SUM(applied), 0) AS SIGNED) FROM spread")
                .fetch_one(&mut stack.mysql().await)
                .await
                .unwrap();
        (done >= i64::try_from(streams * versions).unwrap()).then_some(())
    })
    .await;
    let right: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM spread WHERE versions = ?")
        .bind(wanted.join(","))
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap();
    assert_eq!(
        right,
        i64::try_from(streams).unwrap(),
        "not every stream has the versions 1 to {versions} in order"
    );
}

/// Instances share the load evenly, and no event is lost or doubled. Method: instances join, leave
/// and are killed while events arrive.
#[tokio::test(flavor = "multi_thread")]
async fn instances_come_and_go_and_share_the_load() {
    let rounds = events(40_000) / 1_000;
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let mut daemons: Vec<Daemon> = vec![projector.start_ready().await];
        let writing = async {
            for version in 1..=rounds {
                sqlx::query(
                    "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
                     SELECT gen_random_uuid(), 'order-' || s, $1, 'Tested', '{}'
                     FROM generate_series(1, 1000) s",
                )
                .bind(i64::try_from(version).unwrap())
                .execute(&mut stack.postgres().await)
                .await
                .unwrap();
                sleep(Duration::from_millis(700)).await;
            }
        };
        let changing = async {
            let mut times = vec![evenly_spread(stack, 1).await];
            daemons.push(projector.start_ready().await);
            times.push(evenly_spread(stack, 2).await);
            daemons.push(projector.start_ready().await);
            daemons.push(projector.start_ready().await);
            times.push(evenly_spread(stack, 4).await);
            daemons[0].kill().await;
            daemons[1].terminate().await;
            times.push(evenly_spread(stack, 2).await);
            times
        };
        let ((), times) = tokio::join!(writing, changing);
        println!("evenly spread over 1, 2, 4, 2 instances after {times:?}");
        all_in_order(stack, 1_000, rounds).await;
        let status = status(stack, SPREAD).await;
        assert_eq!((&status["parked"], &status["conflicts"]), (&json!(0), &json!(0)), "{status:#}");
    })
    .await;
}

/// The number of partitions changes while events arrive. The old queues are emptied and deleted,
/// and no event is lost.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_can_be_changed() {
    Stack::run(async |stack| {
        let folder = stack.folder().join("projections");
        let from = harness::root().join(SPREAD).join("spread");
        std::fs::create_dir_all(folder.join("spread")).unwrap();
        for file in ["projection.toml", "tables.sql", "Tested.sql"] {
            std::fs::copy(from.join(file), folder.join("spread").join(file)).unwrap();
        }
        let projector = stack.projector(&folder);
        projector.clone().arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let mut daemon = projector.start_ready().await;
        for (round, partitions) in [(1, 3), (2, 1), (3, 8)] {
            fill_version(stack, round * 2 - 1).await;
            daemon.kill().await;
            fill_version(stack, round * 2).await;
            let definition = format!("categories = [\"order\"]\npartitions = {partitions}\n");
            std::fs::write(folder.join("spread/projection.toml"), definition).unwrap();
            daemon = projector.start_ready().await;
        }
        all_in_order(stack, 200, 6).await;
        let queues = stack.manage("GET", &format!("queues/{}", stack.name()), &Value::Null).await;
        let mut names: Vec<&str> = queues
            .as_array()
            .unwrap()
            .iter()
            .map(|queue| queue["name"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        let wanted: Vec<String> =
            (1..=8).map(|number| format!("projector.spread.{number}of8")).collect();
        assert_eq!(names[..8], wanted, "{names:?}");
        assert_eq!(names[8..], ["projector.spread.dead"], "old queues are left");
    })
    .await;
}

async fn fill_version(stack: &Stack, version: i64) {
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), 'order-' || s, $1, 'Tested', '{}' FROM generate_series(1, 200) s",
    )
    .bind(version)
    .execute(&mut stack.postgres().await)
    .await
    .unwrap();
}

/// Eight writers change the same few rows with several statements each. There is no deadlock, because
/// only one batch runs at a time.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_rows_never_deadlock() {
    let count = events(20_000);
    Stack::run(async |stack| {
        let projector = stack.projector(SHARED).env("PROJECTOR__PROJECTOR__BATCH_SIZE", "10");
        projector.clone().arg("migrate").succeed().await;
        let daemons = [projector.start_ready().await, projector.start_ready().await];
        let _relay = stack.relay().start_ready().await;
        sqlx::query(
            "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
             SELECT gen_random_uuid(), 'order-' || s, v, CASE WHEN (s + v) % 3 = 0 THEN 'Moved' ELSE 'Tested' END,
                    jsonb_build_object('bucket', (s * 7 + v * 3) % 11, 'other', (s * 5 + v) % 11, 'n', 1.25)
             FROM generate_series(1, $1 / 20) s CROSS JOIN generate_series(1, 20) v ORDER BY v, s",
        )
        .bind(i64::try_from(count).unwrap())
        .execute(&mut stack.postgres().await)
        .await
        .unwrap();
        let applied = "SELECT CAST(COALESCE(SUM(version), 0) AS SIGNED) FROM shared__streams";
        within(Duration::from_mins(4), "everything is applied", async || {
            let done: i64 = sqlx::query_scalar(applied).fetch_one(&mut stack.mysql().await).await.unwrap();
            (done == i64::try_from(count).unwrap()).then_some(())
        })
        .await;
        let mut batches = 0.0;
        for daemon in &daemons {
            let lost = daemon.metric("projector_connection_losses_total{server=\"mysql\"}").await;
            assert!(lost < 0.5, "{lost} batches were repeated: {}", daemon.log());
            batches += daemon.metric("projector_batch_duration_seconds_count{projection=\"shared\"}").await;
        }
        println!("{batches} batches of {count} events, no deadlock");
        assert!(batches > 100.0);
        let wanted: (i64, i64) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE event_type = 'Tested'), count(*) FROM events",
        )
        .fetch_one(&mut stack.postgres().await)
        .await
        .unwrap();
        let totals: i64 = sqlx::query_scalar("SELECT CAST(SUM(events) AS SIGNED) FROM shared_totals")
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(totals, wanted.1);
    })
    .await;
}

/// A second instance is a hot standby. Each takes over when the other is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let mut projectors = [
            stack.projector(TALLY).start_ready().await,
            stack.projector(TALLY).start_ready().await,
        ];
        let mut versions = String::new();
        for round in 0..6 {
            for n in 1..=5 {
                let number = round * 5 + n;
                stack.append("order-1", &[tested(&json!(number))]).await;
                let comma = if versions.is_empty() { "" } else { "," };
                versions = format!("{versions}{comma}{number}");
            }
            let projector = &mut projectors[round % 2];
            projector.kill().await;
            wait_for(stack, "order-1", &versions).await;
            projector.restart();
            projector.ready().await;
        }
    })
    .await;
}

/// Two instances apply the same event at the same time, and it takes effect once. This happens when
/// an instance loses its queue during a batch and commits without noticing, while its successor
/// applies the same event. The version in the bookkeeping decides between them.
#[tokio::test(flavor = "multi_thread")]
async fn two_instances_in_the_middle_of_the_same_event_apply_it_once() {
    Stack::run(async |stack| {
        let (proxy, proxied) = Proxy::before(&stack.amqp_url).await;
        // The sweeper must not run: events must come from the queue only.
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "1h");
        projector.clone().arg("migrate").succeed().await;
        let _first = projector.clone().env("AMQP_URL", &proxied).start_ready().await;
        let second = projector.start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;

        // Both instances wait for the lock on this row.
        let mut mysql = stack.mysql().await;
        let mut row = mysql.begin().await.unwrap();
        row.execute("INSERT INTO tally_total (id, applied) VALUES (1, 0)").await.unwrap();
        publish(stack, "order-1", &[1]).await;
        waiting_in_mysql(stack, 1).await;
        proxy.cut();
        waiting_in_mysql(stack, 2).await;
        row.commit().await.unwrap();

        eventually("the second instance has settled the event", async || {
            let series = |outcome| {
                format!("projector_events_total{{projection=\"tally\",outcome=\"{outcome}\"}}")
            };
            let applied = second.metric(&series("applied")).await;
            (applied + second.metric(&series("duplicate")).await >= 1.0).then_some(())
        })
        .await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1"));
    })
    .await;
}

/// Waits until this number of statements wait for a lock in MySQL.
async fn waiting_in_mysql(stack: &Stack, count: i64) {
    let mut mysql = stack.mysql().await;
    eventually(&format!("{count} statements wait for a lock"), async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(DISTINCT w.REQUESTING_ENGINE_TRANSACTION_ID)
             FROM performance_schema.data_lock_waits w
             JOIN performance_schema.data_locks l
               ON l.ENGINE_LOCK_ID = w.REQUESTING_ENGINE_LOCK_ID
             WHERE l.OBJECT_SCHEMA = ?",
        )
        .bind(stack.name())
        .fetch_one(&mut mysql)
        .await
        .unwrap();
        (waiting >= count).then_some(())
    })
    .await;
}
