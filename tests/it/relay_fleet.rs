//! Several relays, and writers that commit out of order.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Daemon, Mode, Proxy, Stack, Tap, event, eventually};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::json;
use sqlx::Connection;
use tokio::time::sleep;

use crate::relay::{all_processed, fill, unprocessed};

const STREAMS: u32 = 500;
const WRITERS: u64 = 12;
const BATCH: usize = 500;
const WORKERS: usize = 4;

/// Appends to streams, most often to those with low numbers. Some transactions wait before the
/// commit, and some are rolled back. Returns the number of committed events.
async fn write_hostile(stack: &Stack, seed: u64, events: usize) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let mut connection = stack.postgres().await;
    let mut committed = 0;
    while committed < events {
        let mut transaction = connection.begin().await.unwrap();
        // Each transaction has one stream, so writers cannot deadlock.
        let part: f64 = random.random();
        let stream = f64::from(STREAMS).powf(part).floor();
        let count = random.random_range(1..=40);
        let batch: Vec<_> = (0..count).map(|_| event("Tested", &json!({ "n": 1 }))).collect();
        harness::append(&mut transaction, &format!("order-{stream}"), None, &json!(batch))
            .await
            .unwrap();
        sleep(Duration::from_millis(random.random_range(0..=50))).await;
        if random.random_bool(0.15) {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
            committed += count;
        }
    }
    committed
}

async fn write_all(stack: &Stack, events: usize) -> usize {
    let share = events / usize::try_from(WRITERS).unwrap();
    let writers = (0..WRITERS).map(async |seed| write_hostile(stack, seed, share).await);
    join_all(writers).await.into_iter().sum()
}

async fn relays(stack: &Stack) -> Vec<Daemon> {
    let relay = stack.relay().env("OUTBOX_RELAY__RELAY__WORKERS", &WORKERS.to_string());
    let relay = relay.env("OUTBOX_RELAY__RELAY__BATCH_SIZE", &BATCH.to_string());
    join_all((0..4).map(async |_| relay.start_ready().await)).await
}

/// Asserts that exactly the committed events were published.
async fn compare_ids(stack: &Stack, tap: &Tap) {
    let stored: Vec<String> = sqlx::query_scalar("SELECT event_id::text FROM events")
        .fetch_all(&mut stack.postgres().await)
        .await
        .unwrap();
    let stored: HashSet<String> = stored.into_iter().collect();
    let seen: HashSet<String> = tap.seen().into_iter().map(|message| message.event_id).collect();
    assert_eq!(
        seen.difference(&stored).count(),
        0,
        "events of rolled-back transactions were published"
    );
    assert_eq!(stored.difference(&seen).count(), 0, "lost");
}

/// Four relays publish each committed event once and in order, while writers commit out of order.
#[tokio::test(flavor = "multi_thread")]
async fn four_relays_lose_double_and_invert_nothing() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let _relays = relays(stack).await;
        let events = write_all(stack, 100_000).await;
        tap.wait_for(events).await;
        all_processed(stack).await;
        compare_ids(stack, &tap).await;
        let seen = tap.seen();
        assert_eq!(seen.len(), events, "no duplicates without a fault");
        assert_eq!(Tap::inversions_of_first_copies(&seen), 0);
    })
    .await;
}

/// Killed relays lose no event, and publish few duplicates.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_every_second_loses_nothing() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let mut relays = relays(stack).await;
        let begun = Instant::now();
        let mut kills = 0;
        let killing = async {
            while begun.elapsed() < Duration::from_mins(1) {
                sleep(Duration::from_secs(1)).await;
                let relay = &mut relays[kills % 4];
                relay.kill().await;
                relay.restart();
                kills += 1;
            }
        };
        let writing = async {
            let mut events = 0;
            while begun.elapsed() < Duration::from_mins(1) {
                events += write_all(stack, 6_000).await;
            }
            events
        };
        let ((), events) = tokio::join!(killing, writing);
        tap.wait_for(events).await;
        all_processed(stack).await;
        compare_ids(stack, &tap).await;
        let seen = tap.seen();
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
        let duplicates = seen.len() - events;
        println!("{events} events, {kills} kills, {duplicates} duplicates");
        assert!(duplicates <= kills * BATCH * WORKERS, "{duplicates} duplicates of {kills} kills");
    })
    .await;
}

/// A relay that freezes during a batch loses its lanes. When it continues, it changes nothing in the
/// outbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_relay_loses_its_lanes_and_marks_nothing_later() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let (proxy, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let limits = |program: harness::Program| {
            program
                .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "2s")
                .env("OUTBOX_RELAY__RELAY__CLAIM_TIMEOUT", "4s")
        };
        let zombie = limits(stack.relay().env("AMQP_URL", &amqp_url)).start_ready().await;
        proxy.set(Mode::BlackHole);
        fill(stack, "order", 50, 20).await;
        let claims = "SELECT count(*) FROM pg_stat_activity
                      WHERE application_name = 'outbox-relay worker'
                        AND datname = current_database() AND state = 'idle in transaction'";
        let claimed = eventually("the relay has claimed lanes", async || {
            let claimed: i64 =
                sqlx::query_scalar(claims).fetch_one(&mut stack.postgres().await).await.unwrap();
            (claimed > 0).then_some(claimed)
        })
        .await;
        zombie.signal(Signal::STOP);
        assert!(claimed > 0);
        let frozen = Instant::now();
        let _other = limits(stack.relay()).start();
        eventually("the other relay has taken over", async || {
            (unprocessed(stack).await == 0).then_some(())
        })
        .await;
        println!("the lanes were free after {:?}", frozen.elapsed());
        let marks = async || -> Vec<(i64, String)> {
            sqlx::query_as("SELECT id, processed_at::text FROM outbox ORDER BY id")
                .fetch_all(&mut stack.postgres().await)
                .await
                .unwrap()
        };
        let before = marks().await;
        proxy.set(Mode::Pass);
        zombie.signal(Signal::CONT);
        zombie.ready().await;
        stack.append("order-51", &[event("A", &json!({}))]).await;
        tap.wait_for(1_001).await;
        all_processed(stack).await;
        assert_eq!(
            marks().await[..1_000],
            before[..],
            "the frozen relay marked rows of lost lanes"
        );
    })
    .await;
}
