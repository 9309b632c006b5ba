//! `verify`, `reconcile`, and rebuilds of single streams and as a dry run.

use std::fs;
use std::time::Duration;

use harness::{Stack, event, eventually};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tokio::time::sleep;

use crate::projector::TALLY;
use crate::projector_rebuild::{STREAMS, all_at, append_version, drop_databases, with_projection};

/// A projection in which every row belongs to one stream.
const SPREAD: &str = "tests/projections/spread";

/// `verify` finds and repairs exactly the rows that the test has changed by hand, while events arrive.
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
            let output = verify(&[]).succeed().await;
            assert!(output.contains("every compared row agrees with the event store"), "{output}");
            assert!(output.contains("compared: all rows of tally, tally_total"), "{output}");
            let mut mysql = stack.mysql().await;
            for drift in [
                "UPDATE tally SET total = total + 0.01 WHERE stream_id = 'order-7'",
                "DELETE FROM tally WHERE stream_id = 'order-8'",
                "INSERT INTO tally VALUES ('order-nobody', 1, 1, '1')",
                "UPDATE tally SET versions = UPPER(CONCAT(versions, 'a')) WHERE stream_id = 'order-9'",
            ] {
                mysql.execute(drift).await.unwrap();
            }
            let output = verify(&[]).fail(1).await;
            for line in [
                "tally (order-7): total",
                "tally (order-nobody): must not be there",
                "tally (order-9): versions",
            ] {
                assert!(output.contains(line), "{output}");
            }
            assert!(output.contains("tally (order-8): "), "{output}");
            assert!(output.contains("4 rows differ from the event store: `projector verify"), "{output}");
            verify(&["--repair"]).succeed().await;
            verify(&[]).succeed().await;
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let (version, ()) = tokio::join!(writing, verifying);
        all_at(stack, version).await;
    })
    .await;
}

/// `verify` names every stream whose bookkeeping contradicts the event store.
#[tokio::test(flavor = "multi_thread")]
async fn bookkeeping_that_contradicts_the_event_store_is_named() {
    with_projection(async |stack, projector, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        eventually("the sweeper has checked all events", async || {
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
        let output = stack.projector(TALLY).args(["verify", "tally"]).fail(1).await;
        for line in [
            "stream order-3: version 9 was applied, but the event store does not have it",
            "stream order-4: version 1 was applied from another event than the event store has",
            "stream order-5: version 0 was the last to be applied",
            "the bookkeeping of 3 streams contradicts the event store: run `projector rebuild start tally`",
        ] {
            assert!(output.contains(line), "{output}");
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

/// `verify` waits for an open append and keeps its connections meanwhile. With `TEST_SECONDS=70` it
/// waits longer than MySQL keeps idle connections.
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
        let (output, ()) = tokio::join!(verify.succeed(), holding);
        assert!(output.contains("every compared row agrees with the event store"), "{output}");
    })
    .await;
}

/// Single streams can be rebuilt in the tables in service, and verified alone.
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
        let output = command(&["verify", "spread", "--sample", "100"]).fail(1).await;
        assert!(output.contains("3 rows differ"), "{output}");
        for part in [
            "spread (order-7) at version 2 of order-7: versions is 2,1, expected 1,2",
            "applied is 3, expected 2",
            "streams in spread",
        ] {
            assert!(output.contains(part), "{output}");
        }
        let found: Vec<bool> =
            [7, 8, 9].map(|number| output.contains(&format!("spread (order-{number})"))).to_vec();
        assert_eq!(found, [true; 3], "{output}");

        let file = stack.folder().join("streams");
        fs::write(&file, "order-9\n\norder-nobody\n").unwrap();
        let file = file.display().to_string();
        let output = command(&[
            "rebuild",
            "spread",
            "--stream",
            "order-7",
            "order-8",
            "--streams-file",
            &file,
        ]);
        let output = output.succeed().await;
        for line in ["order-7: 2 events", "order-8: 2 events", "order-9: 2 events"] {
            assert!(output.contains(line), "{output}");
        }
        assert!(output.contains("order-nobody: the event store has no such stream"), "{output}");
        command(&["verify", "spread"]).succeed().await;
        command(&["verify", "spread", "--sample", "10"]).succeed().await;
        append_version(stack, 3).await;
        spread_at(stack, 3).await;
        drop_databases(stack).await;
    })
    .await;
}

/// A row that several streams change cannot be rebuilt from one of them.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_share_rows_are_not_rebuilt_alone() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        for arguments in
            [["rebuild", "tally", "--stream", "order-1"], ["verify", "tally", "--sample", "5"]]
        {
            let output = stack.projector(TALLY).args(arguments).fail(1).await;
            assert!(
                output.contains("Tested.sql:8:13: the rows that it changes in tally_total may"),
                "{output}"
            );
        }
        all_at(stack, 1).await;
    })
    .await;
}

/// A dry run reports the effect of a rebuild, and changes nothing.
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
        let output = dry.fail(1).await;
        assert!(output.contains("103 events in"), "{output}");
        assert!(output.contains("no handler for Unheard: 1 event has no effect"), "{output}");
        assert!(
            output.contains("2 streams would be parked, for example order-2 at version 2"),
            "{output}"
        );
        let found = dry.arg("--json").fail(1).await;
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["parked"][0]["streams"], 2);
        all_at(stack, 1).await;
        let output = stack.projector(TALLY).args(["rebuild", "tally"]).fail(1).await;
        assert!(output.contains("2 streams cannot be applied by these handlers"), "{output}");
        let (_, status) = stack.projector(TALLY).arg("status").try_run().await;
        assert!(status.contains("rebuild     failed: 2 streams cannot be applied"), "{status}");
        all_at(stack, 1).await;
        let allowed = ["rebuild", "tally", "--allow-parked"];
        stack.projector(TALLY).args(allowed).succeed().await;
    })
    .await;
}

/// The connection that waits for a lock of another one.
async fn blocked_by(stack: &Stack, holder: u64) -> Option<i64> {
    // Not from sys.innodb_lock_waits: it stays as it is while it is read more than ten times per second.
    let sql = "SELECT CAST(waiting.processlist_id AS SIGNED)
               FROM performance_schema.data_lock_waits AS lock_wait
               JOIN performance_schema.threads AS waiting
                   ON waiting.thread_id = lock_wait.requesting_thread_id
               JOIN performance_schema.threads AS blocking
                   ON blocking.thread_id = lock_wait.blocking_thread_id
               WHERE blocking.processlist_id = ?";
    sqlx::query_scalar(sql).bind(holder).fetch_optional(&mut stack.mysql().await).await.unwrap()
}

/// A comparison whose work MySQL has undone for the sake of another session begins again.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_begins_again_after_a_lock_wait() {
    with_projection(async |stack, projector, relay| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        relay.terminate().await;
        projector.terminate().await;
        let mut holder = stack.mysql().await;
        let drift = "UPDATE tally SET total = total + 1 WHERE stream_id = 'order-1'";
        holder.execute(drift).await.unwrap();
        let mut gate = holder.begin().await.unwrap();
        let lock =
            "SELECT CONNECTION_ID() FROM projector_projections WHERE name = 'tally' FOR UPDATE";
        let id: u64 = sqlx::query_scalar(lock).fetch_one(&mut *gate).await.unwrap();
        let hold = async {
            let first =
                eventually("the comparison waits", async || blocked_by(stack, id).await).await;
            eventually("another attempt waits", async || {
                blocked_by(stack, id).await.filter(|next| *next != first)
            })
            .await;
            gate.rollback().await.unwrap();
        };
        let verify = stack.projector(TALLY).args(["verify", "tally"]);
        let (verified, ()) = tokio::join!(verify.fail(1), hold);
        assert!(verified.contains("1 row differs"), "{verified}");
        assert!(verified.contains("the comparison begins again"), "{verified}");
    })
    .await;
}

/// `reconcile` compares the appended events with the published and the applied ones.
#[tokio::test(flavor = "multi_thread")]
async fn reconcile_accounts_for_every_event() {
    with_projection(async |stack, projector, relay| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let reconcile = async || {
            let arguments = ["audit", "tally", "--grace", "0s", "--bucket", "365days", "--json"];
            let (nothing_missing, text) = stack.projector(TALLY).args(arguments).try_run().await;
            let report = serde_json::from_str::<Value>(&text).unwrap()[0].clone();
            let line = &report["lines"][0];
            let counts = ["appended", "published", "applied", "parked", "missing"]
                .map(|name| line[name].as_i64().unwrap());
            assert_eq!(nothing_missing, counts[4] == 0);
            (counts, report)
        };
        // The relay may mark a row only after the event is applied, so the test waits.
        eventually("all events are published", async || {
            (reconcile().await.0 == [100, 100, 100, 0, 0]).then_some(())
        })
        .await;
        let whole = async || {
            let sql = "SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables WHERE relname IN ('events', 'outbox')";
            let scans: i64 = sqlx::query_scalar(sql).fetch_one(&mut stack.postgres().await).await.unwrap();
            scans
        };
        let before = whole().await;
        reconcile().await;
        assert_eq!(whole().await, before, "no table was read as a whole");

        stack.append("order-1", &[event("Tested", &json!({ "m": 1 }))]).await;
        eventually("the stream is parked", async || {
            (reconcile().await.0 == [101, 101, 100, 1, 0]).then_some(())
        })
        .await;

        relay.terminate().await;
        projector.terminate().await;
        let late = stack.append("order-2", &[event("Tested", &json!({ "n": 1 }))]).await;
        assert_eq!(late, 2);
        assert_eq!(reconcile().await.0, [102, 101, 100, 1, 0], "one event is not published");
        relay.restart();
        let lost = eventually("the event is published and not applied", async || {
            let (counts, report) = reconcile().await;
            (counts == [102, 102, 100, 1, 1]).then_some(report)
        })
        .await;
        assert_eq!(lost["missing"][0]["stream_id"], "order-2");
        assert_eq!(lost["missing"][0]["stream_version"], 2);
        let output = stack.projector(TALLY).args(["audit", "--grace", "0s"]).fail(1).await;
        assert!(output.contains("version 2 of order-2"), "{output}");
        projector.restart();
        eventually("the event is applied", async || {
            (reconcile().await.0 == [102, 102, 101, 1, 0]).then_some(())
        })
        .await;
    })
    .await;
}
