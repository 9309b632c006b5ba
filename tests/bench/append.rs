//! Appending: the cost of the function and the trigger.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Stack, event};
use serde_json::json;
use sqlx::Executor;

use crate::Scale;
use crate::limits::rate;
use crate::process::Cpu;
use crate::report::Report;

/// Transactions of one event per measurement.
const EVENTS: u32 = 8_000;

const HOW: [How; 3] = [How::WithoutTrigger, How::Insert, How::Function];

#[derive(Clone, Copy)]
enum How {
    WithoutTrigger,
    Insert,
    Function,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::WithoutTrigger => "INSERT without the trigger",
            Self::Insert => "INSERT",
            Self::Function => "append_to_stream",
        }
    }
}

pub(crate) async fn run(scale: Scale, report: &mut Report) {
    let table = report.table(
        "Append",
        "Each transaction appends one event; each client has its own streams. `append_to_stream` is compared \
         with plain INSERTs of the same rows, with and without the trigger that fills the outbox.",
    );
    for clients in [1, 4, 16] {
        let mut rates = [const { Vec::new() }; 3];
        let mut spent = [const { Vec::new() }; 3];
        for _ in 0..scale.runs {
            for ((how, rates), spent) in HOW.into_iter().zip(&mut rates).zip(&mut spent) {
                Stack::run(async |stack| {
                    if matches!(how, How::WithoutTrigger) {
                        let disable = "ALTER TABLE events DISABLE TRIGGER USER";
                        stack.postgres().await.execute(disable).await.expect("no trigger");
                    }
                    let cpu = Cpu::start();
                    rates.push(append(stack, clients, how).await);
                    let seconds = cpu.spent().get("postgres").copied().unwrap_or_default();
                    spent.push(seconds * 1e6 / f64::from(EVENTS));
                })
                .await;
            }
        }
        let clients =
            if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
        let limit = format!("{clients}: {}", HOW[0].name());
        for ((how, rates), spent) in HOW.into_iter().zip(rates).zip(spent) {
            let what = format!("{clients}: {}", how.name());
            if what == limit {
                table.row(what.clone(), "events/s", rates);
            } else {
                table.row_of(what.clone(), "events/s", rates, &limit);
            }
            table.row(format!("{what}, CPU of postgres"), "µs/event", spent);
        }
    }
}

async fn append(stack: &Stack, clients: u32, how: How) -> f64 {
    let each = EVENTS / clients;
    let mut sessions = Vec::new();
    for _ in 0..clients {
        sessions.push(stack.postgres().await);
    }
    let begun = Instant::now();
    let writing = (0..clients).zip(sessions).map(async |(client, mut session)| {
        for number in 0..each {
            let stream = format!("order-{client}-{}", number % 100);
            let data = json!({ "n": number, "text": "x".repeat(470) });
            if matches!(how, How::Function) {
                let events = json!([event("Tested", &data)]);
                harness::append(&mut session, &stream, None, &events).await.expect("appended");
            } else {
                sqlx::query(
                    "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
                     VALUES (gen_random_uuid(), $1, $2, 'Tested', $3::jsonb)",
                )
                .bind(stream)
                .bind(i64::from(number / 100 + 1))
                .bind(data.to_string())
                .execute(&mut session)
                .await
                .expect("inserted");
            }
        }
    });
    join_all(writing).await;
    let took: Duration = begun.elapsed();
    rate(each * clients, took)
}
