//! Whether read models are right, and what a rebuild would do.

use std::fs;
use std::time::Duration;

use harness::{Stack, event, eventually};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tokio::time::sleep;

use crate::projector::TALLY;
use crate::projector_rebuild::{STREAMS, all_at, append_version, drop_databases, with_projection};

/// Every row of it belongs to one stream.
const SPREAD: &str = "tests/projections/spread";

/// Drift made by hand is found, exactly that, while events arrive; and repaired.
#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_and_repairs_drift_and_nothing_else() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let writing = async {
            let mut version = 1;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                version += 1;
                append_version(stack, version).await;
                sleep(Duration::from_millis(50)).await;
            }
            version
        };
        let verifying = async {
            let verify = |more: &[&str]| {
                let arguments: Vec<String> =
                    ["verify", "tally"].iter().chain(more).map(ToString::to_string).collect();
                stack.projector(TALLY).args(arguments)
            };
            let told = verify(&[]).succeed().await;
            assert!(told.contains("every compared row of tally agrees with the event store"), "{told}");
            let mut mysql = stack.mysql().await;
            for drift in [
                "UPDATE tally SET total = total + 0.01 WHERE stream_id = 'order-7'",
                "DELETE FROM tally WHERE stream_id = 'order-8'",
                "INSERT INTO tally VALUES ('order-nobody', 1, 1, '1')",
                "UPDATE tally SET versions = UPPER(CONCAT(versions, 'a')) WHERE stream_id = 'order-9'",
            ] {
                mysql.execute(drift).await.unwrap();
            }
            let told = verify(&[]).fail(1).await;
            for line in [
                "tally (order-7): total",
                "tally (order-nobody): must not be there",
                "tally (order-9): versions",
            ] {
                assert!(told.contains(line), "{told}");
            }
            assert!(told.contains("tally (order-8): "), "{told}");
            assert!(told.contains("4 rows are wrong"), "{told}");
            verify(&["--repair"]).succeed().await;
            verify(&[]).succeed().await;
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let (version, ()) = tokio::join!(writing, verifying);
        all_at(stack, version).await;
    })
    .await;
}

/// Bookkeeping that does not fit the event store is found, and named.
#[tokio::test(flavor = "multi_thread")]
async fn bookkeeping_that_contradicts_the_event_store_is_named() {
    with_projection(async |stack, projector, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        eventually("the sweeper has looked", async || {
            (projector.metric("projector_checkpoint_position{projection=\"tally\"}").await >= 100.0)
                .then_some(())
        })
        .await;
        projector.terminate().await;
        let mut mysql = stack.mysql().await;
        for misfit in [
            "UPDATE tally__streams SET version = 9 WHERE stream_id = 'order-3'",
            "UPDATE tally__streams SET event_id = UUID_TO_BIN(UUID()) WHERE stream_id = 'order-4'",
            "DELETE FROM tally__streams WHERE stream_id = 'order-5'",
        ] {
            mysql.execute(misfit).await.unwrap();
        }
        let told = stack.projector(TALLY).args(["verify", "tally"]).fail(1).await;
        for line in [
            "stream order-3: version 9 was applied, but the event store does not have it",
            "stream order-4: version 1 was applied from another event than the event store has",
            "stream order-5: version 0 was the last to be applied",
            "the bookkeeping of 3 streams contradicts the event store; run `projector rebuild start tally`",
        ] {
            assert!(told.contains(line), "{told}");
        }
        stack.projector(TALLY).args(["rebuild", "tally"]).succeed().await;
        stack.projector(TALLY).args(["verify", "tally"]).succeed().await;
    })
    .await;
}

async fn spread_at(stack: &Stack, version: i64) {
    eventually("all streams are applied", async || {
        let right = "SELECT COUNT(*) FROM spread WHERE applied = ?";
        let right: i64 = sqlx::query_scalar(right)
            .bind(version)
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        (right == STREAMS).then_some(())
    })
    .await;
}

/// A comparison that has to wait for a transaction that has appended keeps its connections: with
/// `TEST_SECONDS=70`, for longer than MySQL lets them be idle.
#[tokio::test(flavor = "multi_thread")]
async fn verify_waits_for_an_open_append() {
    Stack::run(async |stack| {
        stack.projector(SPREAD).arg("migrate").succeed().await;
        let _projector = stack.projector(SPREAD).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_version(stack, 1).await;
        spread_at(stack, 1).await;
        let mut writer = stack.postgres().await;
        let mut open = writer.begin().await.unwrap();
        let late = json!([event("Tested", &json!({ "n": 1.25 }))]);
        harness::append(&mut open, "order-7", Some(1), &late).await.unwrap();
        let seconds = std::env::var("TEST_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
        let holding = async {
            sleep(Duration::from_secs(seconds)).await;
            open.commit().await.unwrap();
        };
        let verify = stack.projector(SPREAD).args(["verify", "spread"]);
        let (told, ()) = tokio::join!(verify.succeed(), holding);
        assert!(
            told.contains("every compared row of spread agrees with the event store"),
            "{told}"
        );
    })
    .await;
}

/// Single streams are folded anew where they are, and looked at alone.
#[tokio::test(flavor = "multi_thread")]
async fn single_streams_are_rebuilt_in_place_and_verified() {
    Stack::run(async |stack| {
        stack.projector(SPREAD).arg("migrate").succeed().await;
        let _projector = stack.projector(SPREAD).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_version(stack, 1).await;
        append_version(stack, 2).await;
        spread_at(stack, 2).await;
        let command = |arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            stack.projector(SPREAD).args(arguments)
        };
        let mut mysql = stack.mysql().await;
        for drift in [
            "UPDATE spread SET versions = '2,1' WHERE stream_id = 'order-7'",
            "DELETE FROM spread WHERE stream_id = 'order-8'",
            "UPDATE spread SET applied = 3 WHERE stream_id = 'order-9'",
        ] {
            mysql.execute(drift).await.unwrap();
        }
        let told = command(&["verify", "spread", "--sample", "100"]).fail(1).await;
        assert!(told.contains("3 rows are wrong"), "{told}");
        let found: Vec<bool> =
            [7, 8, 9].map(|number| told.contains(&format!("spread (order-{number})"))).to_vec();
        assert_eq!(found, [true; 3], "{told}");

        let file = stack.folder().join("streams");
        fs::write(&file, "order-9\n\norder-nobody\n").unwrap();
        let file = file.display().to_string();
        let told = command(&[
            "rebuild",
            "spread",
            "--stream",
            "order-7",
            "order-8",
            "--streams-file",
            &file,
        ]);
        let told = told.succeed().await;
        for line in ["order-7: 2 events", "order-8: 2 events", "order-9: 2 events"] {
            assert!(told.contains(line), "{told}");
        }
        assert!(told.contains("order-nobody: the event store has no such stream"), "{told}");
        command(&["verify", "spread"]).succeed().await;
        command(&["verify", "spread", "--sample", "10"]).succeed().await;
        append_version(stack, 3).await;
        spread_at(stack, 3).await;
        drop_databases(stack).await;
    })
    .await;
}

/// Rows that many streams feed cannot be folded for one of them.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_share_rows_are_not_rebuilt_alone() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        for arguments in
            [["rebuild", "tally", "--stream", "order-1"], ["verify", "tally", "--sample", "5"]]
        {
            let told = stack.projector(TALLY).args(arguments).fail(1).await;
            assert!(
                told.contains("Tested.sql:8: the rows that it changes in tally_total may"),
                "{told}"
            );
        }
        all_at(stack, 1).await;
    })
    .await;
}

/// What a rebuild would do is told, and nothing is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reports_the_effect_of_a_rebuild() {
    with_projection(async |stack, projector, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        projector.terminate().await;
        stack.append("order-1", &[event("Unheard", &json!({}))]).await;
        stack.append("order-2", &[event("Tested", &json!({ "m": 1 }))]).await;
        stack.append("order-3", &[event("Tested", &json!({ "m": 1 }))]).await;
        let dry = stack.projector(TALLY).args(["rebuild", "tally", "--dry-run"]);
        let told = dry.fail(1).await;
        assert!(told.contains("103 events in"), "{told}");
        assert!(told.contains("no handler for Unheard: 1 events have no effect"), "{told}");
        assert!(
            told.contains("2 streams would be parked, for example order-2 at version 2"),
            "{told}"
        );
        let found = dry.arg("--json").fail(1).await;
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["parked"][0]["streams"], 2);
        all_at(stack, 1).await;
        let told = stack.projector(TALLY).args(["rebuild", "tally"]).fail(1).await;
        assert!(told.contains("2 streams cannot be applied by these handlers"), "{told}");
        let (_, status) = stack.projector(TALLY).arg("status").try_run().await;
        assert!(status.contains("rebuild     failed: 2 streams cannot be applied"), "{status}");
        all_at(stack, 1).await;
        let allowed = ["rebuild", "tally", "--allow-parked"];
        stack.projector(TALLY).args(allowed).succeed().await;
    })
    .await;
}

/// What was appended is compared with what was published and applied.
#[tokio::test(flavor = "multi_thread")]
async fn reconcile_accounts_for_every_event() {
    with_projection(async |stack, projector, relay| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let audit = async || {
            let arguments = ["audit", "tally", "--grace", "0s", "--bucket", "365days", "--json"];
            let (nothing_missing, text) = stack.projector(TALLY).args(arguments).try_run().await;
            let audit = serde_json::from_str::<Value>(&text).unwrap()[0].clone();
            let line = &audit["lines"][0];
            let counts = ["appended", "published", "applied", "parked", "missing"]
                .map(|name| line[name].as_i64().unwrap());
            assert_eq!(nothing_missing, counts[4] == 0);
            (counts, audit)
        };
        // A row of the outbox is marked after its event may have been applied.
        eventually("all is published", async || {
            (audit().await.0 == [100, 100, 100, 0, 0]).then_some(())
        })
        .await;

        stack.append("order-1", &[event("Tested", &json!({ "m": 1 }))]).await;
        eventually("the stream is parked", async || {
            (audit().await.0 == [101, 101, 100, 1, 0]).then_some(())
        })
        .await;

        relay.terminate().await;
        projector.terminate().await;
        let late = stack.append("order-2", &[event("Tested", &json!({ "n": 1 }))]).await;
        assert_eq!(late, 2);
        assert_eq!(audit().await.0, [102, 101, 100, 1, 0], "one is not published");
        relay.restart();
        let lost = eventually("it is published, and nobody applies it", async || {
            let (counts, audit) = audit().await;
            (counts == [102, 102, 100, 1, 1]).then_some(audit)
        })
        .await;
        assert_eq!(lost["missing"][0]["stream_id"], "order-2");
        assert_eq!(lost["missing"][0]["stream_version"], 2);
        let told = stack.projector(TALLY).args(["audit", "--grace", "0s"]).fail(1).await;
        assert!(told.contains("version 2 of order-2"), "{told}");
        projector.restart();
        eventually("it is applied", async || {
            (audit().await.0 == [102, 102, 101, 1, 0]).then_some(())
        })
        .await;
    })
    .await;
}
