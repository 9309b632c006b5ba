//! What `projector status` and `/readyz` say while a read model does not keep up.

use std::time::{Duration, Instant};

use harness::{Daemon, Mode, Program, Proxy, Stack, eventually, within};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::sleep;

use crate::projector::{TALLY, tested, wait_for};

const SPREAD: &str = "tests/projections/spread";

/// Waits until the status ends with an exit code and contains a text. Returns all of it.
async fn status_says(projector: &Program, code: i32, text: &str) -> String {
    eventually(&format!("the status says {code} and {text:?}"), async || {
        let output = projector.clone().arg("status").output().await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code() == Some(code) && said.contains(text)).then_some(said)
    })
    .await
}

async fn status_json(projector: &Program) -> Value {
    let output = projector.clone().args(["status", "--json"]).output().await;
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until readiness says why it fails.
async fn readiness_says(daemon: &Daemon, component: &str, text: &str) {
    eventually(&format!("readiness says {text:?}"), async || {
        let (status, body) = daemon.get("/readyz").await?;
        let report: Value = serde_json::from_str(&body).ok()?;
        let reason = report["components"][component]["reason"].as_str()?.to_owned();
        (status == 503 && reason.contains(text)).then_some(())
    })
    .await;
}

/// Each state of the projector's side has its exit code, and its cause is named with its object: no tables, no
/// projector, no broker, no relay, no server.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_names_the_cause_of_a_lag() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        status_says(&projector, 3, "run `projector migrate`").await;
        projector.clone().arg("migrate").succeed().await;
        status_says(&projector, 3, "tally: no projector runs it").await;

        let (broker, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let daemon = projector.clone().env("AMQP_URL", &amqp_url).start_ready().await;
        let mut relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        let said = status_says(&projector, 0, "state     ok").await;
        assert!(said.contains("serves partitions 1 of 1"), "{said}");

        // The command itself reaches the broker, so only the projector can know.
        broker.set(Mode::Reset);
        status_says(&projector, 3, "RabbitMQ at 127.0.0.1").await;
        broker.set(Mode::Pass);
        status_says(&projector, 0, "state     ok").await;

        relay.terminate().await;
        stack.append("order-1", &[tested(&json!(2)), tested(&json!(3))]).await;
        status_says(&projector, 1, "no relay is connected").await;
        let said = status_says(&projector, 3, "start one with `outbox-relay run`").await;
        assert!(said.contains("2 events wait to be published since 20"), "{said}");
        readiness_says(&daemon, "relay", "no relay is connected").await;
        let status = status_json(&projector).await;
        assert_eq!(status["projections"][0]["lag_events"], 2, "{status:#}");
        assert_eq!(
            (&status["state"], &status["publishing"]["pending"]),
            (&json!("broken"), &json!(2))
        );
        assert!(status["causes"][0]["since"].is_string(), "{status:#}");
        eventually("the metrics count the same", async || {
            let lag = daemon.metric("projector_lag_events{projection=\"tally\"}").await;
            let unpublished = daemon.metric("projector_unpublished_events").await;
            (lag > 1.5 && unpublished > 1.5).then_some(())
        })
        .await;
        assert!(daemon.metric("projector_oldest_unpublished_age_seconds").await > 5.0);
        let _relay = stack.relay().start_ready().await;
        daemon.ready().await;
        status_says(&projector, 0, "state     ok").await;

        for (server, code, text) in [
            ("READ_MODEL_URL", 3, "tally: its state is unknown: its bookkeeping cannot be read"),
            ("EVENT_STORE_URL", 1, "the event store cannot be read"),
            ("AMQP_URL", 1, "the queues cannot be read"),
        ] {
            let url = match server {
                "READ_MODEL_URL" => &stack.mysql_url,
                "EVENT_STORE_URL" => &stack.postgres_url,
                _ => &stack.amqp_url,
            };
            for mode in [Mode::Reset, Mode::BlackHole] {
                let (proxy, url) = Proxy::before(url).await;
                proxy.set(mode);
                let asked = Instant::now();
                let output = projector.clone().env(server, &url).arg("status").fail(code).await;
                assert!(output.contains(text), "{output}");
                assert!(
                    asked.elapsed() < Duration::from_secs(25),
                    "{server}: {:?}",
                    asked.elapsed()
                );
            }
        }
    })
    .await;
}

/// A session that has locked rows is named by the status and by readiness: its number, its user and the statement
/// that took the lock, without values. Without the right to see locks, the missing grant is named.
#[tokio::test(flavor = "multi_thread")]
async fn the_session_that_has_locked_rows_is_named() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let limited = format!("l{}", stack.name());
        let mut mysql = stack.mysql().await;
        for sql in [
            format!("CREATE USER {limited} IDENTIFIED BY 'limited'"),
            format!("GRANT ALL ON {}.* TO {limited}", stack.name()),
        ] {
            mysql.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;

        let mut other = stack.mysql().await;
        let mut transaction = other.begin().await.unwrap();
        let session: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()")
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        transaction.execute("UPDATE tally_total SET applied = applied + 4711").await.unwrap();
        transaction.execute("SELECT 'another statement'").await.unwrap();
        stack.append("order-1", &[tested(&json!(2))]).await;
        let named = format!("MySQL session {session} (dev@");
        readiness_says(&daemon, "projection tally", &named).await;
        let said = status_says(&projector, 3, &named).await;
        assert!(
            said.contains("has locked rows of tally_total (UPDATE `tally_total` SET"),
            "{said}"
        );
        assert!(said.contains(&format!("or run KILL {session}")), "{said}");
        assert!(!said.contains("4711"), "a value: {said}");

        let user = stack.mysql_url.split('@').next().unwrap();
        let url = stack.mysql_url.replace(user, &format!("mysql://{limited}:limited"));
        let hidden = "GRANT SELECT ON performance_schema.* to it";
        let said = projector.clone().env("READ_MODEL_URL", &url).arg("status").fail(3).await;
        assert!(said.contains(hidden) && said.contains("lag         1 event,"), "{said}");

        transaction.rollback().await.unwrap();
        wait_for(stack, "order-1", "1,2").await;
        daemon.ready().await;
        status_says(&projector, 0, "state     ok").await;
        mysql.execute(AssertSqlSafe(format!("DROP USER {limited}"))).await.unwrap();
    })
    .await;
}

/// A killed instance is gone from the status within seconds and then from MySQL, and the others serve its
/// partitions. An idle instance serves its partitions too.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_instance_is_gone() {
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let _one = projector.start_ready().await;
        let mut other = projector.start_ready().await;
        status_says(&projector, 0, "serves partitions").await;
        let serves = async |instances: usize| {
            within(Duration::from_secs(10), "the instances share the partitions", async || {
                let status = status_json(&projector).await;
                let found = status["projections"][0]["instances"].as_array()?.clone();
                let assigned = |one: &Value| one["assigned"].as_array().map_or(0, Vec::len);
                let even = found.iter().all(|one| assigned(one) == 8 / instances);
                (found.len() == instances && even).then_some(())
            })
            .await;
        };
        serves(2).await;
        other.kill().await;
        serves(1).await;
        within(Duration::from_secs(20), "its rows are deleted", async || {
            let mut mysql = stack.mysql().await;
            for table in ["projector_instances", "projector_reports"] {
                let count = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
                let rows: i64 = sqlx::query_scalar(count).fetch_one(&mut mysql).await.unwrap();
                if rows != 1 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    })
    .await;
}

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
        // A second line if the session that holds the lock was not known yet in the first one.
        assert!((1..=2).contains(&lines("does not work, trying again").len()), "{log}");
        let ended = lines("works again");
        assert_eq!(ended.len(), 1, "{log}");
        let ended: Value = serde_json::from_str(ended[0]).unwrap();
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
