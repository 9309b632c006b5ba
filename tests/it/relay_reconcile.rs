//! `outbox-relay reconcile` compares the event store with the outbox.

use std::collections::BTreeMap;

use harness::{Stack, Tap, event, eventually};
use serde_json::{Value, json};
use sqlx::Executor;

use crate::relay::fill;

/// How many rows a statement of the command may read at once.
const PAGE: i64 = 50_000;

/// What was read of a table: how often the whole of it, and how many rows by an index.
async fn read(stack: &Stack, table: &str) -> (i64, i64) {
    sqlx::query_as(
        "SELECT coalesce(seq_scan, 0), coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables
         WHERE relname = $1",
    )
    .bind(table)
    .fetch_one(&mut stack.postgres().await)
    .await
    .unwrap()
}

/// What was read of both tables since then, as soon as so many rows of the outbox were. The server counts them
/// when a session ends, which is after its command.
async fn read_since(
    stack: &Stack,
    (events, outbox): ((i64, i64), (i64, i64)),
    rows: i64,
) -> ((i64, i64), (i64, i64)) {
    eventually("the session of the command has ended", async || {
        let now = (read(stack, "events").await, read(stack, "outbox").await);
        let of = |now: (i64, i64), before: (i64, i64)| (now.0 - before.0, now.1 - before.1);
        let found = (of(now.0, events), of(now.1, outbox));
        (found.1.1 >= rows).then_some(found)
    })
    .await
}

/// Runs `reconcile` without a failure. Returns its numbers.
async fn reconcile(stack: &Stack, arguments: &[&str]) -> BTreeMap<String, i64> {
    let command = stack.relay().args(["reconcile", "--json"]).args(arguments.iter().copied());
    let report: Value = serde_json::from_str(&command.succeed().await).unwrap();
    let numbers = report.as_object().unwrap().iter();
    numbers.filter_map(|(name, value)| Some((name.clone(), value.as_i64()?))).collect()
}

/// No statement reads a whole table, and a selection of a few events reads little, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_reads_pages_and_no_more_than_it_needs() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let many = 2 * PAGE + 10_000;
        // An hour of age is the margin with which times are searched.
        let append = "INSERT INTO events (event_id, stream_id, stream_version, event_type, data, recorded_at)
            SELECT gen_random_uuid(), 'order-' || n % 1000, n / 1000 + 1, 'A', '{}',
                   now() - (CASE WHEN n < $1 - 20 THEN interval '10 h' ELSE interval '0' END)
            FROM generate_series(0, $1 - 1) AS n";
        sqlx::query(append).bind(many).execute(&mut connection).await.unwrap();
        connection.execute("UPDATE outbox SET processed_at = now() WHERE id % 10 > 0").await.unwrap();
        connection.execute("DELETE FROM outbox WHERE position = 77").await.unwrap();

        let before = (read(stack, "events").await, read(stack, "outbox").await);
        let all = stack.relay().args(["reconcile", "--json"]).fail(65).await;
        assert!(all.contains("1 event is not in the outbox"), "{all}");
        assert!(all.contains(&format!("\"events\": {many}")), "{all}");
        assert!(all.contains("\"missing\": 1") && all.contains("\"position\": 77"), "{all}");
        let all = read_since(stack, before, many - 1).await;
        assert_eq!((all.0.0, all.1.0), (0, 0), "no table was read as a whole");

        let hour_ago = chrono::Utc::now() - chrono::TimeDelta::hours(1);
        for selection in
            [["--after", &(many - 20).to_string()], ["--since", &hour_ago.to_rfc3339()]]
        {
            let before = (read(stack, "events").await, read(stack, "outbox").await);
            let found = reconcile(stack, &selection).await;
            assert_eq!((found["events"], found["processed"], found["pending"]), (20, 18, 2));
            let found = read_since(stack, before, PAGE).await;
            assert!(found.0.1 < PAGE && found.1.1 == PAGE, "{selection:?}: {found:?}");
        }
        let found = reconcile(stack, &["--until", "10", "--stream", "order-3"]).await;
        assert_eq!((found["events"], found["processed"]), (1, 1));
        let republish = stack.relay().args(["republish", "--type", "A", "--dry-run"]);
        assert_eq!(republish.succeed().await.trim(), format!("{many} events would be published again"));
    })
    .await;
}

/// Nothing is missing, and no event is counted twice, while events are appended, published, published again
/// and deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_right_while_everything_goes_on() {
    Stack::run(async |stack| {
        let _tap = Tap::open(stack).await;
        let relay = || stack.relay().env("OUTBOX_RELAY__RELAY__RETENTION", "1s");
        fill(stack, "order", 200, 10).await;
        let _daemon = relay().start_ready().await;
        let append = async {
            for number in 0..150 {
                let events: Vec<_> = (0..10).map(|_| event("A", &json!({}))).collect();
                stack.append(&format!("order-{}", number % 200), &events).await;
            }
        };
        let again = async {
            for _ in 0..5 {
                stack
                    .relay()
                    .args(["republish", "--until", "2000", "--rate", "2000"])
                    .succeed()
                    .await;
            }
        };
        let compare = async {
            for _ in 0..10 {
                let text = relay().args(["reconcile", "--json"]).succeed().await;
                let report: Value = serde_json::from_str(&text).unwrap();
                let of = |name: &str| report[name].as_i64().unwrap();
                assert_eq!(of("missing"), 0, "{report}");
                assert_eq!(
                    of("events"),
                    of("processed") + of("pending") + of("expired"),
                    "{report}"
                );
                assert!(of("events") >= 2_000, "{report}");
            }
        };
        tokio::join!(append, again, compare);
    })
    .await;
}
