//! The projector: the rate at which it applies a queue, and the history.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::{Stack, root};
use sqlx::{AssertSqlSafe, Executor};
use tokio::time::sleep;

use crate::process::{self, Cpu, cost};
use crate::report::{Report, Runs};
use crate::{Scale, limits};

const PROJECTIONS: &str = "config/projections";

/// Appends events of the sample shop.
async fn fill(stack: &Stack, events: u32) {
    let streams = (events / 5).max(1);
    stack
        .workload()
        .args(["generate", "--json", "--seed", "7", "--batch", "1000"])
        .args(["--events".to_owned(), events.to_string()])
        .args(["--streams".to_owned(), streams.to_string()])
        .succeed()
        .await;
}

pub(crate) async fn run(scale: Scale, report: &mut Report) {
    let table = report.table(
        "Projector",
        "The projector applies events of the sample shop from a full queue. It is compared with a bare upsert: \
         multi-row statements with one row for each of the same events, without queue and bookkeeping.",
    );
    let mut bare = Vec::new();
    for projection in ["order_summary", "customer_value"] {
        let mut ours = Runs::of(scale.events);
        for _ in 0..scale.runs {
            Stack::run(async |stack| {
                let (rate, cost, spent) = drain(stack, projection, scale.events).await;
                ours.push(rate, cost, spent);
                if projection == "order_summary" {
                    let (_, changes) = limits::read(stack, scale.events, true).await;
                    bare.push(limits::upsert(stack, &changes).await);
                }
            })
            .await;
        }
        if projection == "order_summary" {
            table.row("bare upsert", "events/s", bare.clone());
        }
        table.runs(projection, ours, "bare upsert");
    }
    if scale.backlog == 0 {
        return;
    }
    let [few, many] =
        [10_000, scale.backlog].map(|events| (events, format!("order_summary, {events} events")));
    for (events, what) in [&few, &many] {
        let mut ours = Runs::of(*events);
        Stack::run(async |stack| {
            let (rate, cost, spent) = drain(stack, "order_summary", *events).await;
            ours.push(rate, cost, spent);
        })
        .await;
        table.runs(what, ours, &few.1);
    }
}

/// Fills a queue and lets the projector apply it; returns the rate, and the cost of projector and servers.
async fn drain(
    stack: &Stack,
    projection: &str,
    events: u32,
) -> (f64, process::Cost, BTreeMap<String, f64>) {
    let projector = stack
        .projector(PROJECTIONS)
        .env("PROJECTOR__PROJECTOR__PROJECTIONS", projection)
        .env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "5s")
        .env("PROJECTOR__PROJECTOR__SWEEP_GRACE", "10s");
    projector.clone().arg("migrate").succeed().await;
    // This run declares the queue and reads the empty history.
    projector.start_ready().await.terminate().await;
    fill(stack, events).await;
    publish_all(stack, events).await;
    let cpu = Cpu::start();
    let (rate, cost) = apply(projector, projection, events).await;
    (rate, cost, cpu.spent())
}

async fn publish_all(stack: &Stack, events: u32) {
    let mut relay = stack.relay().start_ready().await;
    let published = "outbox_relay_messages_published_total{outcome=\"confirmed\"}";
    while relay.metric(published).await < f64::from(events) {
        sleep(Duration::from_millis(100)).await;
    }
    relay.terminate().await;
}

async fn apply(projector: harness::Program, projection: &str, events: u32) -> (f64, process::Cost) {
    let mut daemon = projector.start();
    let applied =
        format!("projector_events_total{{projection=\"{projection}\",outcome=\"applied\"}}");
    let begun = loop {
        if daemon.get("/livez").await.is_some() && daemon.metric(&applied).await > 0.0 {
            break Instant::now();
        }
        sleep(Duration::from_millis(1)).await;
    };
    let first = daemon.metric(&applied).await;
    while daemon.metric(&applied).await < f64::from(events) {
        assert!(begun.elapsed() < Duration::from_mins(5), "the projector applies");
        sleep(Duration::from_millis(10)).await;
    }
    let rate = (f64::from(events) - first) / begun.elapsed().as_secs_f64();
    let cost = cost(daemon.running().expect("it runs"));
    daemon.terminate().await;
    (rate, cost)
}

pub(crate) async fn run_rebuild(scale: Scale, report: &mut Report) {
    let table = report.table(
        "Rebuild",
        "A rebuild replays the history of the sample shop into new tables and puts them in service. It is compared \
         with a plain read of the event store in pages of 5,000 events, and with a bare upsert: multi-row \
         statements with one row for each event.",
    );
    for events in [scale.history / 10, scale.history] {
        let (mut read, mut bare) = (Vec::new(), Vec::new());
        let projections = ["order_summary", "customer_value", "daily_revenue"];
        let mut ours = projections.map(|_| Runs::of(events));
        Stack::run(async |stack| {
            let projector = || stack.projector(root().join(PROJECTIONS));
            projector().arg("migrate").succeed().await;
            fill(stack, events).await;
            // No relay runs, so the outbox is emptied.
            stack.postgres().await.execute("TRUNCATE outbox CASCADE").await.expect("no outbox");
            stack.postgres().await.execute("VACUUM ANALYZE events").await.expect("statistics");
            for _ in 0..scale.runs {
                let (_, changes) = limits::read(stack, events, true).await;
                bare.push(limits::upsert(stack, &changes).await);
                drop(changes);
                read.push(limits::read(stack, events, false).await.0);
                for (projection, ours) in projections.iter().zip(&mut ours) {
                    let cpu = Cpu::start();
                    let rebuild = projector().args(["rebuild", projection]).start();
                    let (took, cost) = process::run(rebuild).await;
                    ours.push(limits::rate(events, took), cost, cpu.spent());
                }
            }
            for suffix in ["new", "old", "verify"] {
                let drop = format!("DROP DATABASE IF EXISTS `{}__{suffix}`", stack.name());
                stack.mysql().await.execute(AssertSqlSafe(drop)).await.expect("it is dropped");
            }
        })
        .await;
        let limit = format!("{events}: bare upsert");
        table.row(format!("{events}: plain read"), "events/s", read);
        table.row(limit.clone(), "events/s", bare);
        for (projection, ours) in projections.iter().zip(ours) {
            table.runs(&format!("{events}: {projection}"), ours, &limit);
        }
    }
}
