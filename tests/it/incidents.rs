//! 65,533 real events of 7,554 incidents, and the expected read models.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Daemon, Disturber, Stack, Tap, root, within};
use sqlx::AssertSqlSafe;
use tokio::time::sleep;

const PROJECTIONS: &str = "tests/projections/incidents";
const EVENTS: i64 = 65_533;

/// The folder of the data, if it exists.
fn data() -> Option<PathBuf> {
    let folder = root().join("../shared/data/incidents");
    folder.is_dir().then_some(folder)
}

/// Each read model: the file of expected rows, and the query that must return them.
const READ_MODELS: [(&str, &str); 3] = [
    (
        "expected_incident_summary.csv",
        "SELECT CONCAT_WS(',', incident_id, COALESCE(status, '\\\\N'), COALESCE(impact, '\\\\N'),
                COALESCE(product, '\\\\N'), COALESCE(owner_group, '\\\\N'),
                CAST(opened_at AS DATETIME(3)), CAST(last_event_at AS DATETIME(3)),
                COALESCE(CAST(completed_at AS DATETIME(3)), '\\\\N'), handovers, events)
         FROM incident_summary ORDER BY incident_id",
    ),
    (
        "expected_group_workload.csv",
        "SELECT CONCAT_WS(',', owner_group, accepted, queued, completed, unmatched)
         FROM group_workload ORDER BY owner_group",
    ),
    (
        "expected_daily_activity.csv",
        "SELECT CONCAT_WS(',', day, event_type, events)
         FROM daily_activity ORDER BY day, event_type",
    ),
];

async fn compare(stack: &Stack) {
    let data = data().unwrap();
    let mut mysql = stack.mysql().await;
    for (file, query) in READ_MODELS {
        let expected = fs::read_to_string(data.join(file)).unwrap();
        let found: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut mysql).await.unwrap();
        let mut lines = 0;
        for (number, (expected, found)) in expected.lines().skip(1).zip(&found).enumerate() {
            assert_eq!(found, expected, "{file}, row {}", number + 1);
            lines += 1;
        }
        assert_eq!((found.len(), expected.lines().count() - 1), (lines, lines), "{file}");
    }
}

/// Waits until every event is applied according to the bookkeeping of all three projections.
async fn all_applied(stack: &Stack) {
    for projection in ["incident_summary", "group_workload", "daily_activity"] {
        let query = format!("SELECT CAST(SUM(version) AS SIGNED) FROM {projection}__streams");
        let mut mysql = stack.mysql().await;
        within(Duration::from_mins(4), &format!("{projection} is complete"), async || {
            let applied: Option<i64> = sqlx::query_scalar(AssertSqlSafe(query.clone()))
                .fetch_one(&mut mysql)
                .await
                .unwrap();
            (applied == Some(EVENTS)).then_some(())
        })
        .await;
    }
}

async fn run(disturb: impl AsyncFnOnce(&mut [Daemon])) {
    let Some(data) = data() else {
        #[expect(clippy::print_stderr, reason = "a skipped test prints why")]
        {
            eprintln!("SKIPPED: the data of the incidents are missing");
        }
        return;
    };
    Stack::run(async |stack| {
        let projector = stack.projector(PROJECTIONS).env("PROJECTOR__PROJECTOR__SWEEP_GRACE", "5s");
        projector.clone().arg("migrate").succeed().await;
        let tap = Tap::open(stack).await;
        let mut daemons = [
            stack.relay().start_ready().await,
            stack.relay().start_ready().await,
            projector.start_ready().await,
            projector.start_ready().await,
        ];
        let file = data.join("events.jsonl.gz").display().to_string();
        let import = stack.workload().arg("import").arg(file);
        let (_, ()) = tokio::join!(import.succeed(), disturb(&mut daemons));
        all_applied(stack).await;
        compare(stack).await;
        let seen = tap.wait_for(usize::try_from(EVENTS).unwrap()).await;
        assert_eq!(Tap::inversions_of_last_copies(&seen), 0);
    })
    .await;
}

/// The read models of real events equal the expected rows.
#[tokio::test(flavor = "multi_thread")]
async fn the_incidents_give_the_expected_read_models() {
    run(async |_| {}).await;
}

/// The read models are right although the queue reorders messages, delivers each up to three times and
/// drops one in a hundred.
#[tokio::test(flavor = "multi_thread")]
async fn the_incidents_give_the_same_over_a_lossy_queue() {
    let Some(data) = data() else { return };
    Stack::run(async |stack| {
        let projector = stack.projector(PROJECTIONS);
        projector.clone().arg("migrate").succeed().await;
        let disturber = Disturber::start(stack, 4).await;
        let _projector = projector.start_ready().await;
        let _relay =
            stack.relay().env("OUTBOX_RELAY__RABBITMQ__EXCHANGE", "raw").start_ready().await;
        let file = data.join("events.jsonl.gz").display().to_string();
        stack.workload().arg("import").arg(file).succeed().await;
        // The sweeper may apply events before the disturber has seen their messages.
        within(Duration::from_mins(4), "every message is forwarded or dropped", async || {
            (disturber.handled() >= usize::try_from(EVENTS).unwrap()).then_some(())
        })
        .await;
        all_applied(stack).await;
        compare(stack).await;
        let status = projector.arg("status").arg("--json").output().await;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        println!("{} dropped; {status:#}", disturber.dropped());
        assert!(disturber.dropped() > 400);
        for projection in status["projections"].as_array().unwrap() {
            let healed = projection["healed"].as_u64().unwrap();
            assert!(healed >= disturber.dropped() as u64, "{healed} healed");
            assert_eq!(projection["parked"], 0);
        }
    })
    .await;
}

/// The read models are right although each daemon is killed ten times.
#[tokio::test(flavor = "multi_thread")]
async fn the_incidents_give_the_same_when_each_daemon_is_killed_ten_times() {
    run(async |daemons| {
        for _ in 0..10 {
            for daemon in &mut *daemons {
                sleep(Duration::from_millis(rand::random_range(50..700))).await;
                daemon.kill().await;
                daemon.restart();
            }
        }
    })
    .await;
}
