//! Migrations of the projector's tables in MySQL, including the bookkeeping of each projection.

use harness::Stack;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::projector::{TALLY, tested, wait_for};

/// Statements that turn the current bookkeeping into that of earlier versions. Each goes one version
/// further back. These versions of `projector migrate` recorded no version.
const BACK: [&str; 4] = [
    "ALTER TABLE tally__checkpoint DROP COLUMN landmark_position, DROP COLUMN landmark_id,
                                   DROP COLUMN server_run;
     ALTER TABLE tally__streams DROP COLUMN position",
    "ALTER TABLE tally__checkpoint DROP COLUMN epoch",
    "ALTER TABLE tally__streams DROP COLUMN parked;
     ALTER TABLE tally__checkpoint DROP COLUMN healed;
     DROP TABLE tally__parked",
    "ALTER TABLE tally__checkpoint DROP COLUMN replay_until",
];

async fn run(stack: &Stack, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    sql.execute(&mut stack.mysql().await).await.unwrap();
}

/// Goal: `projector migrate` updates the bookkeeping of every earlier version, and no event is
/// applied before. Method: create the current tables, apply events, and remove the additions of
/// later versions.
#[tokio::test(flavor = "multi_thread")]
async fn the_bookkeeping_of_every_earlier_version_is_migrated() {
    for versions_back in 0..=BACK.len() {
        Stack::run(async |stack| {
            let projector = stack.projector(TALLY);
            projector.clone().arg("migrate").succeed().await;
            let mut daemon = projector.clone().start_ready().await;
            let _relay = stack.relay().start_ready().await;
            stack.append("order-1", &[tested(&json!(1)), tested(&json!(2))]).await;
            wait_for(stack, "order-1", "1,2").await;
            daemon.terminate().await;
            run(stack, "DROP TABLE tally__migrations").await;
            for sql in &BACK[..versions_back] {
                run(stack, sql).await;
            }

            let output = projector.clone().arg("status").fail(3).await;
            let reason = "the bookkeeping of tally has version 0, and this program needs 5: run `projector \
                          migrate`";
            // The message names a missing table first.
            let missing = "table tally__parked is missing in MySQL: run `projector migrate`";
            assert!(output.contains(reason) || output.contains(missing), "{output}");

            let output = projector.clone().arg("migrate").succeed().await;
            assert!(output.contains("tally: the bookkeeping was brought up to this version"), "{output}");
            let output = projector.clone().arg("migrate").succeed().await;
            assert!(output.contains("tally: up to date"), "{output}");
            let _daemon = projector.clone().start_ready().await;
            stack.append("order-1", &[tested(&json!(3))]).await;
            wait_for(stack, "order-1", "1,2,3").await;
            projector.clone().args(["verify", "tally"]).succeed().await;
            let status = projector.clone().args(["status", "--json"]).succeed().await;
            let status: Value = serde_json::from_str(&status).unwrap();
            let tally = &status["projections"][0];
            assert_eq!((&tally["parked"], &tally["healed"]), (&json!(0), &json!(0)));
            crate::projector_rebuild::drop_databases(stack).await;
        })
        .await;
    }
}

/// A migration runs while projectors apply events. Projectors of the previous version are included:
/// they insert rows without the columns that the migration adds.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_runs_under_running_projectors() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        run(stack, "DROP TABLE tally__migrations; ALTER TABLE tally__checkpoint DROP COLUMN epoch")
            .await;
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.clone().start_ready().await;
        let _relay = stack.relay().start_ready().await;
        // The first version of the projector inserted such rows.
        run(
            stack,
            "INSERT INTO tally__streams (stream_id, version, previous_version, event_id)
             VALUES ('order-other', 7, 6, UUID_TO_BIN(UUID()))",
        )
        .await;
        let appending = async {
            for number in 1..=200 {
                stack.append("order-1", &[tested(&json!(number))]).await;
            }
        };
        let migrating = async {
            for _ in 0..5 {
                projector.clone().arg("migrate").succeed().await;
            }
        };
        tokio::join!(appending, migrating);
        let all: Vec<String> = (1..=200).map(|number| number.to_string()).collect();
        wait_for(stack, "order-1", &all.join(",")).await;
        assert!(!daemon.log().contains("\"ERROR\"") && !daemon.log().contains(" ERROR "));
    })
    .await;
}

/// An older projector works with a newer database, because migrations only add.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_projector_works_with_newer_bookkeeping() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        run(
            stack,
            "ALTER TABLE tally__streams ADD COLUMN added_later INT NOT NULL DEFAULT 0;
             INSERT INTO tally__migrations (version, description, success, checksum, execution_time)
             VALUES (99, 'added later', TRUE, '', 0)",
        )
        .await;
        let _daemon = projector.clone().start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        projector.clone().arg("status").succeed().await;
    })
    .await;
}

/// The next migrator finishes a migration whose migrator died halfway.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_migration_is_finished() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        // The first statement of each migration was executed, and the others were not.
        run(
            stack,
            "UPDATE tally__migrations SET success = FALSE WHERE version = 3;
             DELETE FROM tally__migrations WHERE version > 3;
             DROP TABLE tally__parked;
             ALTER TABLE tally__checkpoint DROP COLUMN healed, DROP COLUMN epoch;
             UPDATE projector_migrations SET success = FALSE WHERE version = 5;
             ALTER TABLE projector_projections DROP COLUMN swapping",
        )
        .await;
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.clone().start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        projector.clone().arg("status").succeed().await;
    })
    .await;
}
