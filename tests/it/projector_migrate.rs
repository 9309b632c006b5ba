//! Migrations of what is ours in MySQL, the bookkeeping of each projection included.

use harness::Stack;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::projector::{TALLY, tested, wait_for};

/// Statements that turn the present bookkeeping into that of an earlier version of `projector migrate`, which
/// recorded no version. Each goes one version further back.
const BACK: [&str; 3] = [
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

/// Goal: a database that an earlier version has made is brought up to date by `projector migrate`, and
/// nothing is applied before. Method: make the present tables, take back what later versions added, and
/// begin with the events that were applied.
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

            let told = projector.clone().arg("status").fail(1).await;
            let reason = "the bookkeeping of tally has version 0, and this program needs 4: run `projector \
                          migrate`";
            // Where a table is missing, that is said.
            let missing = "table tally__parked is missing in MySQL: run `projector migrate`";
            assert!(told.contains(reason) || told.contains(missing), "{told}");

            let told = projector.clone().arg("migrate").succeed().await;
            assert!(told.contains("tally: the bookkeeping was brought up to this version"), "{told}");
            let told = projector.clone().arg("migrate").succeed().await;
            assert!(told.contains("tally: up to date"), "{told}");
            let _daemon = projector.clone().start_ready().await;
            stack.append("order-1", &[tested(&json!(3))]).await;
            wait_for(stack, "order-1", "1,2,3").await;
            projector.clone().args(["verify", "tally"]).succeed().await;
            let status = projector.clone().args(["status", "--json"]).succeed().await;
            let status: Value = serde_json::from_str(&status).unwrap();
            assert_eq!((&status[0]["parked"], &status[0]["healed"]), (&json!(0), &json!(0)));
            crate::projector_rebuild::drop_databases(stack).await;
        })
        .await;
    }
}

/// A migration runs while projectors apply events, those of the version before included: they insert
/// rows without the columns that it adds.
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
        // As the first version of the projector did.
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

/// A program that is older than the database goes on: a migration only adds.
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

/// A migrator that dies in the middle of a migration leaves it half done: the next one finishes it.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_migration_is_finished() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        // Of these, the first statement was done, and not the others.
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
