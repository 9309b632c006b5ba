//! The relay: the rate at which it publishes a backlog.

use std::time::{Duration, Instant};

use harness::Stack;
use tokio::time::sleep;

use crate::process::{Cost, Cpu, cost};
use crate::report::{Report, Runs};
use crate::{Scale, limits};

const QUEUE: &str = "bench";

pub(crate) async fn run(scale: Scale, report: &mut Report) {
    let table = report.table(
        "Relay",
        "The relay publishes a backlog of events of 500 B to a quorum queue with confirms. It is compared with a \
         bare publisher that sends the same bytes from memory with 2,048 outstanding confirms, and with a bare \
         loop that claims and marks rows without a broker.",
    );
    let (mut bare, mut marked, mut ours) = (Vec::new(), Vec::new(), Runs::of(scale.events));
    for _ in 0..scale.runs {
        Stack::run(async |stack| {
            limits::bind_queue(stack, QUEUE).await;
            fill(stack, scale.events).await;
            let cpu = Cpu::start();
            let (rate, cost) = drain(stack, scale.events).await;
            ours.push(rate, cost, cpu.spent());
            let messages = limits::take(stack, QUEUE, scale.events).await;
            bare.push(limits::publish(stack, &messages).await);
            limits::purge(stack, QUEUE).await;
            fill(stack, scale.events).await;
            marked.push(limits::claim_and_mark(stack, scale.events).await);
        })
        .await;
    }
    table.row("bare publisher", "events/s", bare);
    table.row("bare claim and mark", "events/s", marked);
    table.runs("relay", ours, "bare publisher");
    if scale.backlog == 0 {
        return;
    }
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for _ in 0..scale.runs.min(3) {
        for (events, rates) in [(10_000, &mut few), (scale.backlog, &mut many)] {
            Stack::run(async |stack| {
                limits::bind_queue(stack, QUEUE).await;
                fill(stack, events).await;
                rates.push(drain(stack, 10_000).await.0);
            })
            .await;
        }
    }
    table.row("the first 10,000 of 10,000", "events/s", few);
    let what = format!("the first 10,000 of {}", scale.backlog);
    table.row_of(what, "events/s", many, "the first 10,000 of 10,000");
}

/// Appends events to the ends of 1,000 streams.
async fn fill(stack: &Stack, events: u32) {
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), 'order-' || n % 1000,
                1 + n / 1000 + (SELECT coalesce(max(stream_version), 0) FROM events), 'Tested',
                jsonb_build_object('n', n, 'text', repeat('x', 470))
         FROM generate_series(0, $1 - 1) AS n",
    )
    .bind(i64::from(events))
    .execute(&mut stack.postgres().await)
    .await
    .expect("events are appended");
    sqlx::query("ANALYZE").execute(&mut stack.postgres().await).await.expect("statistics");
}

/// Publishes with the relay; returns the rate and the cost.
async fn drain(stack: &Stack, events: u32) -> (f64, Cost) {
    let relay = stack.relay().env("OUTBOX_RELAY__RELAY__POLL_MAX", "250ms");
    let mut relay = relay.start();
    while relay.get("/readyz").await.is_none_or(|(status, _)| status != 200) {
        sleep(Duration::from_millis(1)).await;
    }
    let published = "outbox_relay_messages_published_total{outcome=\"confirmed\"}";
    let (begun, first) = (Instant::now(), relay.metric(published).await);
    let wanted = f64::from(events);
    let last = loop {
        let now = relay.metric(published).await;
        if now >= wanted {
            break now;
        }
        assert!(begun.elapsed() < Duration::from_mins(5), "the relay publishes");
        sleep(Duration::from_millis(10)).await;
    };
    let rate = (last - first) / begun.elapsed().as_secs_f64();
    let cost = cost(relay.running().expect("it runs"));
    relay.terminate().await;
    (rate, cost)
}
