//! Commands and projectors that have other files than those in service.

use std::path::{Path, PathBuf};

use harness::{Daemon, Program, Stack, event, eventually, write_projection};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};

use crate::projector_rebuild::drop_databases;

/// Writes a projection `steps` whose handler adds `steps` for each event.
pub(crate) fn write_steps(folder: &Path, steps: i64) -> PathBuf {
    write(folder, steps, "", "")
}

fn write(folder: &Path, steps: i64, column: &str, value: &str) -> PathBuf {
    let tables = format!(
        "CREATE TABLE steps (stream_id VARCHAR(255) CHARACTER SET utf8mb4
         COLLATE utf8mb4_0900_bin PRIMARY KEY, steps INT NOT NULL{column})"
    );
    let handler = format!(
        "INSERT INTO steps (stream_id, steps) VALUES (:stream_id, :data.times{steps})
         ON DUPLICATE KEY UPDATE steps = steps + :data.times{steps}{value}"
    );
    write_projection(folder, "steps", &[("tables.sql", &tables), ("Tested.sql", &handler)]);
    folder.to_path_buf()
}

async fn append(stack: &Stack, stream: &str, n: i64) {
    stack.append(stream, &[event("Tested", &json!({ "times1": n, "times10": 10 * n }))]).await;
}

async fn steps(stack: &Stack) -> Option<i32> {
    sqlx::query_scalar("SELECT steps FROM steps WHERE stream_id = 'order-1'")
        .fetch_optional(&mut stack.mysql().await)
        .await
        .unwrap()
}

async fn steps_become(stack: &Stack, wanted: i32) {
    eventually(&format!("steps is {wanted}"), async || {
        (steps(stack).await == Some(wanted)).then_some(())
    })
    .await;
}

async fn says(daemon: &Daemon, status: u16, text: &str) {
    eventually(&format!("{status} with {text:?}"), async || {
        let (found, body) = daemon.get("/readyz").await?;
        (found == status && body.contains(text)).then_some(())
    })
    .await;
}

async fn is_parked(projector: &Program, wanted: &str) {
    eventually(&format!("{wanted} is parked"), async || {
        let listed = projector.clone().args(["parked", "list", "steps"]).succeed().await;
        listed.contains(wanted).then_some(())
    })
    .await;
}

const WAITS: &str = "these files of steps are not in service";

fn one_and_ten(stack: &Stack) -> [Program; 2] {
    [("one", 1), ("ten", 10)]
        .map(|(name, steps)| stack.projector(write_steps(&stack.folder().join(name), steps)))
}

/// A rollback applies what came since the swap with the handlers of the previous tables, whatever files the
/// command has. Afterwards the instances that have these files go on by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_uses_the_definition_of_the_previous_tables() {
    Stack::run(async |stack| {
        let [one, ten] = one_and_ten(stack);
        one.clone().arg("migrate").succeed().await;
        let first = one.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append(stack, "order-1", 1).await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 2).await;
        ten.clone().args(["rebuild", "start", "steps"]).succeed().await;
        // No event arrives: the instance finds out by itself.
        says(&first, 503, WAITS).await;
        let second = ten.start_ready().await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 30).await;
        ten.clone().args(["rebuild", "rollback", "steps"]).succeed().await;
        assert_eq!(steps(stack).await, Some(3));
        says(&second, 503, WAITS).await;
        first.ready().await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 4).await;
        one.clone().args(["verify", "steps"]).succeed().await;
        let output = ten.clone().args(["verify", "steps"]).fail(1).await;
        assert!(output.contains(WAITS), "{output}");
        for (files, waits) in [(&one, false), (&ten, true)] {
            let (_, output) = files.clone().args(["status", "steps"]).try_run().await;
            assert_eq!(output.contains("  files "), waits, "{output}");
        }

        // New tables with a column: the rollback has the statements of the tables without it.
        let wide = write(
            &stack.folder().join("wide"),
            10,
            ", last DATETIME(6) NULL",
            ", last = :occurred_at",
        );
        let wide = stack.projector(wide);
        let waiting = wide.start();
        says(&waiting, 503, "tables.sql of steps differs").await;
        wide.clone().args(["rebuild", "start", "steps"]).succeed().await;
        waiting.ready().await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 50).await;
        wide.clone().args(["rebuild", "rollback", "steps"]).succeed().await;
        assert_eq!(steps(stack).await, Some(5));
        first.ready().await;
        let parked = one.clone().args(["parked", "list", "steps"]).succeed().await;
        assert!(parked.contains("no stream is parked"), "{parked}");
        drop_databases(stack).await;
    })
    .await;
}

/// An earlier release recorded nothing about the tables that it took out of service.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_to_tables_of_unknown_files_is_refused() {
    Stack::run(async |stack| {
        let [one, ten] = one_and_ten(stack);
        one.clone().arg("migrate").succeed().await;
        ten.clone().args(["rebuild", "start", "steps"]).succeed().await;
        let unknown = "UPDATE projector_projections SET previous_epoch = UUID_TO_BIN(UUID())";
        stack.mysql().await.execute(unknown).await.unwrap();
        let output = ten.clone().args(["rebuild", "rollback", "steps"]).fail(1).await;
        assert!(output.contains("it is not recorded from which files"), "{output}");
        drop_databases(stack).await;
    })
    .await;
}

/// New handlers come into service with the first instance that has them. A restart of an instance with the
/// previous handlers does not bring those back, and no command works with other files than those in service.
#[tokio::test(flavor = "multi_thread")]
async fn superseded_files_come_back_only_by_adopt() {
    Stack::run(async |stack| {
        let [one, ten] = one_and_ten(stack);
        one.clone().arg("migrate").succeed().await;
        let mut first = one.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 1).await;
        let mut second = ten.start_ready().await;
        says(&first, 503, WAITS).await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 11).await;
        first.terminate().await;
        first.restart();
        says(&first, 503, WAITS).await;
        let poison = event("Tested", &json!({}));
        stack.append("order-2", &[poison]).await;
        is_parked(&one, "order-2").await;
        ten.clone().args(["pause", "steps"]).succeed().await;
        for arguments in [
            &["parked", "retry", "steps", "--all"][..],
            &["parked", "skip", "steps", "order-2", "--reason", "x"],
            &["rebuild", "start", "steps", "--stream", "order-1"],
            &["verify", "steps", "--repair"],
            &["resume", "steps"],
        ] {
            let output = one.clone().args(arguments.iter().copied()).fail(1).await;
            assert!(output.contains("`projector adopt steps`"), "{output}");
        }
        assert_eq!(steps(stack).await, Some(11));
        says(&second, 503, "paused").await;
        ten.clone().args(["resume", "steps"]).succeed().await;
        second.ready().await;
        let output = one.clone().args(["adopt", "steps"]).succeed().await;
        assert!(output.contains("these files of steps are in service"), "{output}");
        first.ready().await;
        says(&second, 503, WAITS).await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 12).await;
        second.terminate().await;
        let audit: Vec<String> =
            sqlx::query_scalar("SELECT action FROM projector_audit ORDER BY id")
                .fetch_all(&mut stack.mysql().await)
                .await
                .unwrap();
        assert_eq!(audit, ["adopt", "pause", "resume", "adopt"]);
        drop_databases(stack).await;
    })
    .await;
}

/// What a person left out stays left out: in a rebuild, a dry run, a comparison, a rebuild of the stream
/// alone, and a rollback.
#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_event_stays_left_out() {
    Stack::run(async |stack| {
        let [one, ten] = one_and_ten(stack);
        one.clone().arg("migrate").succeed().await;
        let mut first = one.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append(stack, "order-1", 1).await;
        stack.append("order-1", &[event("Tested", &json!({}))]).await;
        append(stack, "order-1", 1).await;
        is_parked(&one, "order-1  version 2").await;
        let output = one.clone().args(["rebuild", "start", "steps"]).fail(1).await;
        assert!(output.contains("1 stream cannot be applied"), "{output}");
        let skip = ["parked", "skip", "steps", "order-1", "--reason", "made by a test"];
        one.clone().args(skip).succeed().await;
        assert_eq!(steps(stack).await, Some(2));
        let listed = one.clone().args(["parked", "skipped", "steps"]).succeed().await;
        assert!(listed.contains("order-1  version 2") && listed.contains("made by a test"));
        for arguments in [
            &["rebuild", "start", "steps", "--dry-run"][..],
            &["verify", "steps"],
            &["rebuild", "start", "steps", "--stream", "order-1"],
            &["rebuild", "start", "steps"],
            &["rebuild", "rollback", "steps"],
            &["verify", "steps"],
        ] {
            one.clone().args(arguments.iter().copied()).succeed().await;
            assert_eq!(steps(stack).await, Some(2), "{arguments:?}");
        }
        first.terminate().await;

        // Tables that wait for a rollback are parked at an event that is left out under other files.
        let _second = ten.start_ready().await;
        stack.append("order-1", &[event("Tested", &json!({}))]).await;
        is_parked(&ten, "order-1  version 4").await;
        ten.clone().args(["rebuild", "start", "steps", "--allow-parked"]).succeed().await;
        ten.clone().args(skip).succeed().await;
        append(stack, "order-1", 1).await;
        steps_become(stack, 30).await;
        ten.clone().args(["rebuild", "rollback", "steps"]).succeed().await;
        // The first two were applied by the first handlers, before the second came into service.
        assert_eq!(steps(stack).await, Some(12));

        // Another event with that version is another decision.
        let other = "UPDATE projector_skips SET event_id = UUID_TO_BIN(UUID()) WHERE version = 2";
        stack.mysql().await.execute(other).await.unwrap();
        let output = ten.clone().args(["rebuild", "start", "steps"]).fail(1).await;
        assert!(output.contains("1 stream cannot be applied"), "{output}");
        drop_databases(stack).await;
    })
    .await;
}

/// A skip could reach the live tables and not those of a rebuild, so it waits.
#[tokio::test(flavor = "multi_thread")]
async fn no_event_is_skipped_while_tables_are_built() {
    Stack::run(async |stack| {
        let [one, _] = one_and_ten(stack);
        one.clone().arg("migrate").succeed().await;
        let _first = one.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[event("Tested", &json!({}))]).await;
        is_parked(&one, "order-1").await;
        let building = "REPLACE INTO projector_rebuilds
            (projection, state, definition_hash, started_at, changed_at)
            VALUES ('steps', 'building', 'of other files', NOW(6), NOW(6))";
        stack.mysql().await.execute(building).await.unwrap();
        let skip = ["parked", "skip", "steps", "order-1", "--reason", "made by a test"];
        let output = one.clone().args(skip).fail(1).await;
        assert!(output.contains("so no event can be skipped"), "{output}");
        one.clone().args(["rebuild", "cancel", "steps"]).succeed().await;
        one.clone().args(skip).succeed().await;
        let count = format!("SELECT COUNT(*) FROM {}.projector_skips", stack.name());
        let skips: i64 = sqlx::query_scalar(AssertSqlSafe(count))
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(skips, 1);
        drop_databases(stack).await;
    })
    .await;
}
