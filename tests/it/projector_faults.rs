//! Faults of MySQL: no event is lost or applied twice, and the projector recovers without help.

use std::time::{Duration, Instant};

use harness::{Cut, Mode, Proxy, Stack, eventually, within};
use lapin::options::QueueDeleteOptions;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::sleep;

use crate::projector::{TALLY, applied, tested, wait_for};

const SPREAD: &str = "tests/projections/spread";
const INCIDENTS: &str = "tests/projections/incidents";
const STREAMS: i64 = 50;

async fn append_version(stack: &Stack, version: i64) {
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), 'order-' || s, $2, 'Tested', '{}' FROM generate_series(1, $1) s",
    )
    .bind(STREAMS)
    .bind(version)
    .execute(&mut stack.postgres().await)
    .await
    .unwrap();
}

async fn all_at(stack: &Stack, version: i64) {
    let versions: Vec<String> = (1..=version).map(|version| version.to_string()).collect();
    let versions = versions.join(",");
    within(Duration::from_secs(40), &format!("all streams are at {version}"), async || {
        let right: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM spread WHERE versions = ?")
            .bind(&versions)
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        (right == STREAMS).then_some(())
    })
    .await;
}

/// A batch takes effect once, even when the outcome of its COMMIT is unknown. Method: the
/// connection is lost at the COMMIT or at its answer, or a black hole swallows them, which takes
/// time to be noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_with_an_unknown_outcome_has_one_effect() {
    Stack::run(async |stack| {
        let (mysql, url) = Proxy::before(&stack.mysql_url).await;
        // Without TLS, so that the proxy can read the traffic.
        let url = format!("{url}?ssl-mode=DISABLED");
        let projector = stack.projector(SPREAD).env("READ_MODEL_URL", &url);
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let mut version = 0;
        for cut in [Cut::Commit, Cut::CommitAnswer] {
            for _ in 0..8 {
                version += 1;
                mysql.cut_at(cut);
                append_version(stack, version).await;
                all_at(stack, version).await;
            }
        }
        assert!(mysql.cuts() >= 16, "{}", mysql.cuts());
        for mode in [Mode::BlackHole, Mode::BlackHoleTowards(harness::Side::Client)] {
            version += 1;
            append_version(stack, version).await;
            mysql.set(mode);
            sleep(Duration::from_secs(3)).await;
            mysql.set(Mode::Pass);
            let cleared = Instant::now();
            all_at(stack, version).await;
            println!("{mode:?}: caught up {:?} after the fault ended", cleared.elapsed());
            assert!(cleared.elapsed() < Duration::from_secs(5));
        }
    })
    .await;
}

/// The projector survives killed sessions, row locks that outlast the wait of a statement, and
/// deadlocks with another application's transaction.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lock_waits_and_deadlocks_are_survived() {
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let mut mysql = stack.mysql().await;

        for version in 2..=6 {
            append_version(stack, version).await;
            let sessions: Vec<u64> = sqlx::query_scalar(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
            )
            .fetch_all(&mut mysql)
            .await
            .unwrap();
            for id in sessions {
                // The session may have ended already.
                drop(mysql.execute(AssertSqlSafe(format!("KILL {id}"))).await);
            }
            all_at(stack, version).await;
        }

        // Error 1205: the lock outlasts innodb_lock_wait_timeout.
        let mut other = stack.mysql().await;
        let mut transaction = other.begin().await.unwrap();
        transaction.execute("UPDATE spread SET applied = applied WHERE stream_id = 'order-7'").await.unwrap();
        append_version(stack, 7).await;
        sleep(Duration::from_secs(7)).await;
        transaction.rollback().await.unwrap();
        let cleared = Instant::now();
        all_at(stack, 7).await;
        println!("after a lock of 7 s: caught up {:?} later", cleared.elapsed());
        assert!(cleared.elapsed() < Duration::from_secs(5));

        // Error 1213: bookkeeping first, then the row. The batch locks them in the opposite order.
        for version in 8..=12 {
            let mut transaction = other.begin().await.unwrap();
            transaction.execute("UPDATE spread SET applied = applied WHERE stream_id = 'order-3'").await.unwrap();
            append_version(stack, version).await;
            sleep(Duration::from_millis(400)).await;
            drop(transaction.execute("SELECT * FROM spread__streams WHERE stream_id LIKE 'order-%' FOR UPDATE").await);
            drop(transaction.rollback().await);
            all_at(stack, version).await;
        }
        assert!(daemon.metric("projector_connection_losses_total{server=\"mysql\"}").await > 0.5);
        let (status, report) = eventually("the projector is ready", async || {
            let answer = daemon.get("/readyz").await?;
            (answer.0 == 200).then_some(answer)
        })
        .await;
        assert_eq!(status, 200, "{report}");
        let losses = daemon.metric("projector_events_total{projection=\"spread\",outcome=\"parked\"}").await;
        assert!(losses < 0.5, "a stream was parked");
    })
    .await;
}

/// The projector catches up after MySQL refuses writes for a while. The test disturbs every user of
/// the server.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "disturbs every user of MySQL; `cargo xtask test` runs it alone"]
async fn the_projector_waits_for_a_read_only_server() {
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let mut mysql = stack.mysql().await;
        if mysql.execute("SET GLOBAL super_read_only = ON").await.is_err() {
            println!("SKIPPED: this login lacks the right to make the server read-only");
            return;
        }
        append_version(stack, 2).await;
        sleep(Duration::from_secs(6)).await;
        mysql.execute("SET GLOBAL read_only = OFF").await.unwrap();
        let cleared = Instant::now();
        all_at(stack, 2).await;
        println!("caught up {:?} after the server accepted writes again", cleared.elapsed());
        assert!(cleared.elapsed() < Duration::from_secs(5));
    })
    .await;
}

/// The projector catches up after MySQL freezes and continues. Method: SIGSTOP and SIGCONT.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "disturbs every user of MySQL; `cargo xtask test` runs it alone"]
async fn the_projector_waits_for_a_frozen_server() {
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let _daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let Some(server) = server_process(stack).await else {
            println!("SKIPPED: this user cannot stop the process of MySQL");
            return;
        };
        rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
        append_version(stack, 2).await;
        sleep(Duration::from_secs(8)).await;
        rustix::process::kill_process(server, rustix::process::Signal::CONT).unwrap();
        let cleared = Instant::now();
        all_at(stack, 2).await;
        println!("caught up {:?} after the server continued", cleared.elapsed());
        assert!(cleared.elapsed() < Duration::from_secs(5));
    })
    .await;
}

/// The process that listens on the port of the server, if this user owns one on this machine.
async fn server_process(stack: &Stack) -> Option<rustix::process::Pid> {
    let port: i64 =
        sqlx::query_scalar("SELECT @@port").fetch_one(&mut stack.mysql().await).await.ok()?;
    for entry in std::fs::read_dir("/proc").ok()? {
        let path = entry.ok()?.path();
        let command = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let is_server =
            command.split('\0').next().is_some_and(|program| program.ends_with("mysqld"));
        if is_server && command.contains(&format!("--port={port}")) {
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            return rustix::process::Pid::from_raw(pid);
        }
    }
    None
}

/// A sweeper releases a projection whose history must be replayed, even after an error of another
/// projection. Otherwise no instance would consume the queue again.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_one_projection_does_not_delay_the_replay_of_another() {
    Stack::run(async |stack| {
        let rename = async |from: &str, to: &str| {
            let rename = AssertSqlSafe(format!("RENAME TABLE {from} TO {to}"));
            stack.mysql().await.execute(rename).await.unwrap();
        };
        let projector = stack.projector(INCIDENTS);
        projector.clone().arg("migrate").succeed().await;
        // The sweeper checks this projection first.
        rename("daily_activity__checkpoint", "away").await;
        let daemon = projector.start();
        let sweeper = r#""message":"does not work, trying again","component":"sweeper""#;
        eventually("the sweeper logs an error", async || {
            daemon.log().contains(sweeper).then_some(())
        })
        .await;
        rename("away", "daily_activity__checkpoint").await;
        daemon.ready().await;
        let replays = || {
            let log = daemon.log();
            let replays = log.lines().filter(|line| line.contains("history is applied"));
            replays.filter(|line| line.contains(r#""projection":"incident_summary""#)).count()
        };
        let before = replays();
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let queue = "projector.incident_summary";
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        eventually("the history is applied", async || (replays() > before).then_some(())).await;
        daemon.ready().await;
    })
    .await;
}

/// A sweeper releases its projections while an append stays open. Otherwise no instance could replay
/// their history.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_append_does_not_delay_a_replay() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY).env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "3s");
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        eventually("the sweeper owns the projection", async || {
            let series = "projector_checkpoint_position{projection=\"tally\"}";
            (daemon.metric(series).await > 0.5).then_some(())
        })
        .await;
        let replays = || daemon.log().matches("history is applied").count();
        let before = replays();
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let options = QueueDeleteOptions::default();
        channel.queue_delete("projector.tally".into(), options).await.unwrap();
        eventually("a replay is pending or done", async || {
            let pending: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM tally__checkpoint WHERE replay_until IS NOT NULL",
            )
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
            (pending > 0 || replays() > before).then_some(())
        })
        .await;
        let mut postgres = stack.postgres().await;
        let mut writer = postgres.begin().await.unwrap();
        let events = json!([tested(&json!(2))]);
        harness::append(&mut writer, "order-2", None, &events).await.unwrap();
        within(Duration::from_secs(20), "the history is applied", async || {
            (replays() > before).then_some(())
        })
        .await;
        writer.commit().await.unwrap();
        wait_for(stack, "order-2", "1").await;
    })
    .await;
}

/// The sweeper finds and applies lost events without the broker: the event store and the read models
/// suffice.
#[tokio::test(flavor = "multi_thread")]
async fn lost_events_are_applied_without_the_broker() {
    Stack::run(async |stack| {
        let (broker, url) = Proxy::before(&stack.amqp_url).await;
        let projector = stack.projector(TALLY).env("AMQP_URL", &url);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        broker.set(Mode::BlackHole);
        let published = "UPDATE outbox SET processed_at = now() WHERE processed_at IS NULL";
        stack.postgres().await.execute(published).await.unwrap();
        within(Duration::from_mins(1), "the event is applied", async || {
            (applied(stack, "order-1").await.as_deref() == Some("1")).then_some(())
        })
        .await;
        eventually("the checkpoint passes the event", async || {
            let series = "projector_checkpoint_position{projection=\"tally\"}";
            (daemon.metric(series).await > 0.5).then_some(())
        })
        .await;
    })
    .await;
}
