//! The time from the commit of an append until the read model shows the event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use harness::{Stack, event};
use serde_json::json;
use sqlx::PgConnection;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::process::cost;
use crate::report::{Report, percentile};
use crate::{Scale, limits};

const PROJECTIONS: &str = "tests/bench/projections";
const QUEUE: &str = "bench";

pub(crate) async fn run(scale: Scale, report: &mut Report) {
    let table = report.table(
        "Latency",
        "Both times begin at the commit of an append. \"Published\" ends when a quorum queue has delivered the \
         message to a bare consumer, which is just after its confirm. \"Shown\" ends when MySQL shows the \
         effect; a reader polls it every millisecond. The machine is otherwise idle.",
    );
    for notify in ["true", "false"] {
        for rate in [10, 100, 1_000] {
            let mut latency = Latency::default();
            Stack::run(async |stack| {
                stack.projector(PROJECTIONS).arg("migrate").succeed().await;
                let _projector = stack.projector(PROJECTIONS).start_ready().await;
                let relay = stack
                    .relay()
                    .env("OUTBOX_RELAY__RELAY__NOTIFY", notify)
                    .env("OUTBOX_RELAY__RELAY__POLL_MAX", "250ms");
                let _relay = relay.start_ready().await;
                sleep(Duration::from_secs(1)).await;
                latency = measure(stack, rate, scale.seconds).await;
            })
            .await;
            let notify = if notify == "true" { "NOTIFY" } else { "polling" };
            for (until, ages) in [("published", latency.published), ("shown", latency.shown)] {
                for (name, part) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
                    let what = format!("{rate} events/s, {notify}, {until}, {name}");
                    table.row(what, "ms", vec![percentile(&ages, part)]);
                }
            }
        }
    }
    Stack::run(async |stack| {
        stack.projector(PROJECTIONS).arg("migrate").succeed().await;
        let mut projector = stack.projector(PROJECTIONS).start_ready().await;
        let relay = stack.relay().env("OUTBOX_RELAY__RELAY__POLL_MAX", "250ms");
        let mut relay = relay.start_ready().await;
        sleep(Duration::from_secs(2)).await;
        let all = [("relay", relay.running()), ("projector", projector.running())];
        let seconds = |pid: Option<u32>| cost(pid.expect("it runs")).seconds;
        let before = all.map(|(_, pid)| seconds(pid));
        sleep(Duration::from_secs(scale.seconds)).await;
        for ((name, pid), before) in all.into_iter().zip(before) {
            let spent = seconds(pid) - before;
            let all = Duration::from_secs(scale.seconds).as_secs_f64();
            table.row(format!("{name}, idle"), "% of a core", vec![100.0 * spent / all]);
        }
    })
    .await;
}

/// Milliseconds for each event.
#[derive(Default)]
struct Latency {
    published: Vec<f64>,
    shown: Vec<f64>,
}

async fn measure(stack: &Stack, rate: u32, seconds: u64) -> Latency {
    let mut writer = stack.postgres().await;
    let count = i64::from(rate) * i64::try_from(seconds).unwrap_or(1);
    limits::bind_queue(stack, QUEUE).await;
    // Warm up: every lane opens its connection and prepares its statements.
    for number in -50..0 {
        append(&mut writer, number).await;
        sleep(Duration::from_millis(10)).await;
    }
    let mut committed = HashMap::new();
    let mut seen = HashMap::new();
    let writing = async {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 1..=count {
            ticks.tick().await;
            append(&mut writer, number).await;
            committed.insert(number, Instant::now());
        }
    };
    let reading = async {
        let mut reader = stack.mysql().await;
        let mut below = 0_i64;
        let begun = Instant::now();
        while seen.len() < usize::try_from(count).unwrap_or(0) {
            let new: Vec<i64> = sqlx::query_scalar("SELECT number FROM seen WHERE number > ?")
                .bind(below)
                .fetch_all(&mut reader)
                .await
                .expect("rows");
            let now = Instant::now();
            for number in new {
                seen.entry(number).or_insert(now);
            }
            while seen.contains_key(&(below + 1)) {
                below += 1;
            }
            assert!(begun.elapsed() < Duration::from_secs(seconds + 60), "all are seen");
            sleep(Duration::from_millis(1)).await;
        }
    };
    let messages = usize::try_from(count).unwrap_or(0);
    let (published, (), ()) =
        tokio::join!(limits::arrivals(stack, QUEUE, messages), writing, reading);
    Latency { published: ages(&committed, &published), shown: ages(&committed, &seen) }
}

async fn append(writer: &mut PgConnection, number: i64) {
    let events = json!([event("Seen", &json!({ "number": number }))]);
    let stream = format!("order-{}", number.rem_euclid(500));
    harness::append(writer, &stream, None, &events).await.expect("it is appended");
}

fn ages(committed: &HashMap<i64, Instant>, reached: &HashMap<i64, Instant>) -> Vec<f64> {
    let age = |(number, at): (&i64, &Instant)| {
        let reached = reached.get(number)?;
        Some(reached.saturating_duration_since(*at).as_secs_f64() * 1_000.0)
    };
    committed.iter().filter_map(age).collect()
}
