//! What `projector status` and `/readyz` say while a read model does not keep up.

use std::time::{Duration, Instant};

use harness::{Stack, eventually};
use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::time::sleep;

use crate::projector::{TALLY, tested, wait_for};

/// Readiness changes once while a session locks rows of a read model, and once after it. The log has one line
/// for the beginning, and one for the end. Method: the lock outlasts several attempts of the projector, of
/// which each ends with a new consumer.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_changes_once_while_rows_are_locked() {
    Stack::run(async |stack| {
        // Without the sweeper, which would try to apply the event too.
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__SWEEP_GRACE", "10m");
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;

        let mut other = stack.mysql().await;
        let mut transaction = other.begin().await.unwrap();
        transaction.execute("UPDATE tally_total SET applied = applied").await.unwrap();
        stack.append("order-1", &[tested(&json!(2))]).await;
        let ready = async || Some(daemon.get("/readyz").await?.0 == 200);
        eventually("readiness reports the lock", async || (!ready().await?).then_some(())).await;
        let since = Instant::now();
        let mut polls = 0;
        while since.elapsed() < Duration::from_secs(20) {
            assert_eq!(ready().await, Some(false), "ready after {:?}", since.elapsed());
            polls += 1;
            sleep(Duration::from_millis(50)).await;
        }
        assert!(polls > 100, "{polls}");
        let attempts = daemon.log().matches("the projection follows its queues").count();
        assert!(attempts > 2, "the projector opened {attempts} consumers");

        transaction.rollback().await.unwrap();
        daemon.ready().await;
        wait_for(stack, "order-1", "1,2").await;
        let log = daemon.log();
        let lines = |message: &str| {
            let lines =
                log.lines().filter(|line| line.contains("\"component\":\"projection tally\""));
            lines.filter(|line| line.contains(message)).collect::<Vec<_>>()
        };
        assert_eq!(lines("does not work, trying again").len(), 1, "{log}");
        let ended = lines("works again");
        assert_eq!(ended.len(), 1, "{log}");
        let ended: serde_json::Value = serde_json::from_str(ended[0]).unwrap();
        assert!(ended["failures"].as_u64() > Some(2), "{ended}");
        assert!(ended["after_seconds"].as_u64() >= Some(20), "{ended}");
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            assert_eq!(ready().await, Some(true), "not ready after {:?}", since.elapsed());
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}
