//! Rebuilds while applications read and write.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Daemon, Stack, event, eventually, within};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::sleep;

use crate::projector::TALLY;

pub(crate) const STREAMS: i64 = 100;

pub(crate) async fn append_version(stack: &Stack, version: i64) {
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), 'order-' || s, $2, 'Tested', jsonb_build_object('n', 1.25 * s)
         FROM generate_series(1, $1) s",
    )
    .bind(STREAMS)
    .bind(version)
    .execute(&mut stack.postgres().await)
    .await
    .unwrap();
}

/// Waits until the read model is a sequential fold of `versions` events of each stream.
pub(crate) async fn all_at(stack: &Stack, version: i64) {
    let versions: Vec<String> = (1..=version).map(|version| version.to_string()).collect();
    let versions = versions.join(",");
    within(Duration::from_mins(2), &format!("all streams are at {version}"), async || {
        let right: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM tally WHERE versions = ? AND applied = ?
             AND total = 1.25 * ? * CAST(SUBSTRING(stream_id, 7) AS SIGNED)",
        )
        .bind(&versions)
        .bind(version)
        .bind(version)
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap();
        (right == STREAMS).then_some(())
    })
    .await;
    let total: i64 = sqlx::query_scalar("SELECT CAST(applied AS SIGNED) FROM tally_total")
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap();
    assert_eq!(total, STREAMS * version);
}

pub(crate) async fn drop_databases(stack: &Stack) {
    let mut mysql = stack.mysql().await;
    for suffix in ["new", "old", "verify"] {
        let drop = format!("DROP DATABASE IF EXISTS `{}__{suffix}`", stack.name());
        mysql.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}

pub(crate) async fn with_projection(test: impl AsyncFnOnce(&Stack, &mut Daemon, &mut Daemon)) {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let mut projector = stack.projector(TALLY).start_ready().await;
        let mut relay = stack.relay().start_ready().await;
        test(stack, &mut projector, &mut relay).await;
        drop_databases(stack).await;
    })
    .await;
}

/// Goal: rebuilds lose and double no event, and readers see no error and no empty table. Method:
/// twenty rebuilds under writes, while rebuilds and projectors are killed. After each, the read
/// model must be a sequential fold.
#[tokio::test(flavor = "multi_thread")]
async fn rebuilds_under_load_lose_and_double_nothing() {
    let rounds = std::env::var("TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    with_projection(async |stack, projector, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let done = || stop.load(std::sync::atomic::Ordering::Relaxed);
        let writing = async {
            let mut version = 1;
            while !done() {
                version += 1;
                append_version(stack, version).await;
                sleep(Duration::from_millis(60)).await;
            }
            version
        };
        let reading = async {
            let mut mysql = stack.mysql().await;
            let (mut reads, mut slowest) = (0, Duration::ZERO);
            while !done() {
                let begun = Instant::now();
                let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tally")
                    .fetch_one(&mut mysql)
                    .await
                    .expect("a statement of a reader succeeds");
                assert_eq!(rows, STREAMS, "a reader saw an incomplete table");
                slowest = slowest.max(begun.elapsed());
                reads += 1;
                sleep(Duration::from_millis(2)).await;
            }
            (reads, slowest)
        };
        let rebuilding = async {
            for round in 0..rounds {
                let rebuild =
                    stack.projector(TALLY).args(["rebuild", "tally", "--throttle", "20000"]);
                if round % 2 == 1 {
                    let mut killed = rebuild.start();
                    sleep(Duration::from_millis(rand::random_range(50..900))).await;
                    killed.kill().await;
                    projector.kill().await;
                    projector.restart();
                }
                println!("{}", rebuild.succeed().await.lines().next().unwrap_or_default());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let (version, (reads, slowest), ()) = tokio::join!(writing, reading, rebuilding);
        println!("{rounds} rebuilds; {reads} reads, the slowest {slowest:?}");
        all_at(stack, version).await;
        assert!(slowest < Duration::from_secs(2));
    })
    .await;
}

/// A rebuild can be cancelled from another terminal. A second command waits for the first, the
/// cancellation ends both, and a new rebuild starts from the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_can_be_cancelled_from_anywhere() {
    with_projection(async |stack, _, _| {
        for version in 1..=50 {
            append_version(stack, version).await;
        }
        all_at(stack, 50).await;
        let rebuild = |more: &[&str]| {
            let arguments: Vec<String> =
                ["rebuild", "tally"].iter().chain(more).map(ToString::to_string).collect();
            stack.projector(TALLY).args(arguments)
        };
        let output = rebuild(&["--cancel"]).fail(1).await;
        assert!(output.contains("no rebuild of tally is under way"), "{output}");
        let slow = rebuild(&["--throttle", "100"]);
        let cancelling = async {
            eventually("the rebuild shows progress", async || {
                let status = stack.projector(TALLY).arg("status").try_run().await.1;
                (status.contains("rebuild     building") && status.contains("events/s"))
                    .then_some(())
            })
            .await;
            let output = stack.projector(TALLY).args(["rollback", "tally"]).fail(1).await;
            assert!(
                output.contains("another rebuild or comparison of tally is running"),
                "{output}"
            );
            let mut second = slow.start();
            eventually("the second command follows the first", async || {
                second.log().contains("positions left").then_some(())
            })
            .await;
            let cancelled = rebuild(&["--cancel"]).succeed().await;
            assert!(!second.ended().await.success());
            (cancelled, second.log())
        };
        let ((ended, first), (cancelled, second)) = tokio::join!(slow.try_run(), cancelling);
        assert!(cancelled.contains("is cancelled"), "{cancelled}");
        assert!(!ended, "{first}");
        for output in [first, second] {
            assert!(output.contains("the rebuild of tally was cancelled"), "{output}");
        }
        rebuild(&["--json"]).succeed().await;
        all_at(stack, 50).await;
    })
    .await;
}

/// A rebuild waits for an open append, because the append may still commit a lower position. It
/// names the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_waits_for_an_open_append_and_names_it() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let mut writer = stack.postgres().await;
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut writer).await.unwrap();
        let mut open = writer.begin().await.unwrap();
        let late = json!([event("Tested", &json!({ "n": 1.25 }))]);
        harness::append(&mut open, "order-late", Some(0), &late).await.unwrap();
        let rebuild = stack.projector(TALLY).args(["rebuild", "tally"]);
        let seconds = std::env::var("TEST_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
        let holding = async {
            sleep(Duration::from_secs(seconds)).await;
            append_version(stack, 2).await;
            open.commit().await.unwrap();
        };
        let (output, ()) = tokio::join!(rebuild.succeed(), holding);
        assert!(output.contains("waiting: open transactions"), "{output}");
        assert!(output.contains(&format!("pid {pid}")), "{output}");
        eventually("the late event is applied", async || {
            let late = "SELECT versions FROM tally WHERE stream_id = 'order-late'";
            let late: Option<String> =
                sqlx::query_scalar(late).fetch_optional(&mut stack.mysql().await).await.unwrap();
            (late.as_deref() == Some("1")).then_some(())
        })
        .await;
        let verify = stack.projector(TALLY).args(["verify", "tally"]);
        verify.succeed().await;
    })
    .await;
}

/// A rollback restores the previous tables. Method: a rebuild fixes a drifted read model, and a
/// rollback restores the drift. Both contain all events appended since.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_can_be_rolled_back() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let command = |arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            stack.projector(TALLY).args(arguments)
        };
        let output = command(&["rollback", "tally"]).fail(1).await;
        assert!(output.contains("tally has no previous tables"), "{output}");
        let drift = "UPDATE tally SET total = total + 1 WHERE stream_id = 'order-5'";
        stack.mysql().await.execute(drift).await.unwrap();
        command(&["rebuild", "tally"]).succeed().await;
        append_version(stack, 2).await;
        all_at(stack, 2).await;
        // The previous release kept tables without this one.
        let mut mysql = stack.mysql().await;
        let live: String =
            sqlx::query_scalar("SELECT DATABASE()").fetch_one(&mut mysql).await.unwrap();
        let drop = format!("DROP TABLE {live}__old.tally__migrations");
        mysql.execute(AssertSqlSafe(drop)).await.unwrap();
        command(&["rollback", "tally"]).succeed().await;
        append_version(stack, 3).await;
        let total = async || {
            let read = "SELECT CAST(total * 100 AS SIGNED) FROM tally WHERE stream_id = 'order-5'";
            sqlx::query_scalar::<_, i64>(read).fetch_one(&mut stack.mysql().await).await.unwrap()
        };
        eventually("the previous rows are back, with all later events", async || {
            (total().await == 125 * 5 * 3 + 100).then_some(())
        })
        .await;
        command(&["rebuild", "tally"]).succeed().await;
        all_at(stack, 3).await;
        command(&["drop-old", "tally"]).succeed().await;
        command(&["rollback", "tally"]).fail(1).await;
    })
    .await;
}

/// A long-running reader delays the swap, but delays no other reader for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_reader_delays_only_the_swap() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let mut holder = stack.mysql().await;
        let mut transaction = holder.begin().await.unwrap();
        transaction.execute("SELECT * FROM tally LIMIT 1").await.unwrap();
        let reader: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()")
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        let rebuild = stack.projector(TALLY).args(["rebuild", "tally"]);
        let reading = async {
            sleep(Duration::from_secs(1)).await;
            let mut mysql = stack.mysql().await;
            let mut slowest = Duration::ZERO;
            let begun = Instant::now();
            let seconds =
                std::env::var("TEST_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
            while begun.elapsed() < Duration::from_secs(seconds) {
                let read = Instant::now();
                mysql.execute("SELECT COUNT(*) FROM tally").await.unwrap();
                slowest = slowest.max(read.elapsed());
            }
            eventually("the status names the reader", async || {
                let status = stack.projector(TALLY).arg("status").try_run().await.1;
                let swap = "the swap of a rebuild waits: MySQL session";
                status.contains(&format!("{swap} {reader}")).then_some(())
            })
            .await;
            append_version(stack, 2).await;
            all_at(stack, 2).await;
            transaction.rollback().await.unwrap();
            slowest
        };
        let (output, slowest) = tokio::join!(rebuild.succeed(), reading);
        let named = format!("MySQL session {reader}");
        assert!(output.contains("a reader holds a table") && output.contains(&named), "{output}");
        println!("slowest of the other readers: {slowest:?}");
        assert!(slowest < Duration::from_secs(2));
        append_version(stack, 3).await;
        all_at(stack, 3).await;
    })
    .await;
}

/// After a rebuild from changed files, a projector with the previous files stops, and a projector
/// with the new files continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_is_rebuilt() {
    with_projection(async |stack, projector, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let folder: PathBuf = stack.folder().join("projections");
        let (from, to) = (harness::root().join(TALLY).join("tally"), folder.join("tally"));
        fs::create_dir_all(&to).unwrap();
        for file in ["projection.toml", "tables.sql", "Tested.sql"] {
            let text = fs::read_to_string(from.join(file)).unwrap();
            let text = text.replace(
                "versions  MEDIUMTEXT     NOT NULL",
                "versions MEDIUMTEXT NOT NULL, last DATETIME(6) NULL",
            );
            fs::write(to.join(file), text).unwrap();
        }
        let sql = fs::read_to_string(to.join("Tested.sql")).unwrap();
        let sql = sql.replace(
            "applied = applied + 1,\n    total",
            "last = :occurred_at,\n    applied = applied + 1,\n    total",
        );
        fs::write(to.join("Tested.sql"), sql).unwrap();
        let changed = stack.projector(&folder);
        let mut other = changed.start();
        eventually("the new files wait for a rebuild", async || {
            let (status, body) = other.get("/readyz").await?;
            (status == 503 && body.contains("or run `projector rebuild start tally`")).then_some(())
        })
        .await;
        other.terminate().await;
        let rebuild = changed.clone().args(["rebuild", "tally"]);
        // The rebuild dies right after the swap, before any projector notices it. The previous
        // handlers must not change the new tables.
        let dying = rebuild.clone().env("FAILPOINTS", "rebuild::swapped=return");
        assert!(dying.try_run().await.1.contains("failpoint: rebuild::swapped"));
        append_version(stack, 2).await;
        eventually("the old instance reports that a rebuild must end first", async || {
            let (status, body) = projector.get("/readyz").await?;
            (status == 503 && body.contains("was interrupted after it had put other tables"))
                .then_some(())
        })
        .await;
        let applied = "SELECT CAST(SUM(applied) AS SIGNED) FROM tally";
        let applied: i64 =
            sqlx::query_scalar(applied).fetch_one(&mut stack.mysql().await).await.unwrap();
        assert_eq!(applied, STREAMS, "the previous handlers applied an event");
        rebuild.succeed().await;
        eventually("the old instance reports why it stopped", async || {
            let (status, body) = projector.get("/readyz").await?;
            (status == 503 && body.contains("tables.sql of tally differs")).then_some(())
        })
        .await;
        sleep(Duration::from_secs(2)).await;
        let (status, body) = projector.get("/readyz").await.unwrap();
        assert!(
            status == 503 && body.contains("tables.sql of tally differs"),
            "it stays so: {body}"
        );
        let _new = changed.start_ready().await;
        all_at(stack, 2).await;
        let filled: i64 = sqlx::query_scalar("SELECT COUNT(last) FROM tally")
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(filled, STREAMS);
    })
    .await;
}
