//! `GET /v1/projections/{name}/wait`: an application waits for its event before it reads its own write.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Daemon, Mode, Proxy, Stack, eventually};
use serde_json::Value;
use uuid::Uuid;

use crate::projector::{TALLY, tested, wait_for};
use crate::relay::fill;

const SPREAD: &str = "tests/projections/spread";

/// Asks the endpoint. Returns the status and the reason.
async fn wait(daemon: &Daemon, projection: &str, event_id: &str, timeout: &str) -> (u16, String) {
    let path = format!("/v1/projections/{projection}/wait?event_id={event_id}&timeout={timeout}");
    let (status, body) = daemon.get(&path).await.unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    (status, body["error"].as_str().unwrap_or_default().to_owned())
}

/// Appends an event. Returns its id.
async fn append(stack: &Stack, stream_id: &str) -> String {
    stack.append(stream_id, &[tested(&serde_json::json!(1))]).await;
    sqlx::query_scalar("SELECT event_id::text FROM events ORDER BY position DESC LIMIT 1")
        .fetch_one(&mut stack.postgres().await)
        .await
        .unwrap()
}

/// An application can wait until a read model contains its event, and so reads its own writes.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_can_wait_for_its_event() {
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        fill(stack, "order", 1, 1).await;
        let id: String = sqlx::query_scalar("SELECT event_id::text FROM events")
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap();
        let path = |name: &str, id: &str| {
            format!("/v1/projections/{name}/wait?event_id={id}&timeout=300ms")
        };
        let (code, body) = daemon.get(&path("spread", &id)).await.unwrap();
        assert_eq!(
            (code, body.trim()),
            (504, "{\"applied\":false}"),
            "no relay publishes the event yet"
        );
        let _relay = stack.relay().start_ready().await;
        eventually("the event is applied", async || {
            let (code, _) = daemon.get(&path("spread", &id)).await?;
            (code == 200).then_some(())
        })
        .await;
        assert_eq!(daemon.get(&path("other", &id)).await.unwrap().0, 404);
        assert_eq!(daemon.get(&path("spread", "x")).await.unwrap().0, 400);
    })
    .await;
}

/// Waiting requests must not occupy all connections: health and metrics must still answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_waiting_requests_is_limited() {
    Stack::run(async |stack| {
        let projector = stack.projector(SPREAD);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        let path = format!("/v1/projections/spread/wait?event_id={}&timeout=3s", Uuid::new_v4());
        let everybody = join_all((0..140).map(|_| daemon.get(&path)));
        let (answers, alive) = tokio::join!(everybody, daemon.get("/livez"));
        assert_eq!(alive.unwrap().0, 200);
        let refused = answers.iter().filter(|answer| matches!(answer, Some((503, _)))).count();
        let waited = answers.iter().filter(|answer| matches!(answer, Some((504, _)))).count();
        assert_eq!(refused + waited, 140, "{answers:?}");
        assert!((1..=12).contains(&refused), "{refused}");
    })
    .await;
}

/// Requests that wait cost the servers no more than one: they are asked for all of them at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_waiting_requests_cost_no_more_than_one() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let daemon = stack.projector(TALLY).start_ready().await;
        let transactions = async || -> i64 {
            sqlx::query_scalar(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database
                 WHERE datname = current_database()",
            )
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap()
        };
        let (before, begun) = (transactions().await, Instant::now());
        let ids: Vec<String> = (0..100).map(|_| Uuid::new_v4().to_string()).collect();
        let answers = join_all(ids.iter().map(|id| wait(&daemon, "tally", id, "4s"))).await;
        assert!(answers.iter().all(|(status, _)| *status == 504), "{answers:?}");
        let seconds = begun.elapsed().as_secs_f64();
        let count = f64::from(u32::try_from(transactions().await - before).unwrap());
        println!("{:.0} transactions/s for 100 requests", count / seconds);
        assert!(count / seconds < 200.0, "{count} transactions in {seconds} s");
    })
    .await;
}

/// An event of a category that the projection does not follow is never applied, so waiting is refused at
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_another_category_is_refused_at_once() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let daemon = stack.projector(TALLY).start_ready().await;
        let id = append(stack, "invoice-1").await;
        let begun = Instant::now();
        let (status, reason) = wait(&daemon, "tally", &id, "20s").await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(status, 422, "{reason}");
        assert!(
            reason.contains("category invoice") && reason.contains("follows order"),
            "{reason}"
        );
    })
    .await;
}

/// While a projection is paused, nothing is applied, so waiting ends at once with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_paused_projection_ends_at_once() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        let daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let applied = append(stack, "order-1").await;
        wait_for(stack, "order-1", "1").await;
        projector.clone().args(["pause", "tally", "--reason", "OPS-12"]).succeed().await;
        let waiting = append(stack, "order-1").await;
        let begun = Instant::now();
        let (status, reason) = wait(&daemon, "tally", &waiting, "20s").await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(status, 503, "{reason}");
        assert!(reason.contains("OPS-12") && reason.contains("resume tally"), "{reason}");
        assert_eq!(wait(&daemon, "tally", &applied, "1s").await.0, 200);
        projector.clone().args(["resume", "tally"]).succeed().await;
        assert_eq!(wait(&daemon, "tally", &waiting, "20s").await.0, 200);
    })
    .await;
}

/// A server that is away is named. A server that has come back is used at once: a connection that was lost
/// meanwhile costs no answer.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_names_the_server_that_is_away() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let (mysql, mysql_url) = Proxy::before(&stack.mysql_url).await;
        let (rabbitmq, amqp_url) = Proxy::before(&stack.amqp_url).await;
        let (postgres, postgres_url) = Proxy::before(&stack.postgres_url).await;
        let daemon = stack
            .projector(TALLY)
            .env("READ_MODEL_URL", &mysql_url)
            .env("AMQP_URL", &amqp_url)
            .env("EVENT_STORE_URL", &postgres_url)
            .start_ready()
            .await;
        let id = append(stack, "order-1").await;
        assert_eq!(
            wait(&daemon, "tally", &id, "50ms").await.0,
            504,
            "no relay publishes the event"
        );
        for (server, name) in [(&mysql, "MySQL"), (&postgres, "PostgreSQL")] {
            for outage in [Mode::Reset, Mode::BlackHole] {
                server.set(outage);
                let begun = Instant::now();
                let (status, reason) = wait(&daemon, "tally", &id, "50ms").await;
                assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
                assert_eq!(status, 503, "{name} {outage:?}: {reason}");
                assert!(reason.contains(name), "{name} {outage:?}: {reason}");
                server.set(Mode::Pass);
                eventually("the server answers again", async || {
                    (wait(&daemon, "tally", &id, "50ms").await.0 == 504).then_some(())
                })
                .await;
            }
        }
        rabbitmq.set(Mode::Reset);
        eventually("the broker that is away is named", async || {
            let (status, reason) = wait(&daemon, "tally", &id, "50ms").await;
            (status == 503 && reason.contains("RabbitMQ")).then_some(())
        })
        .await;
        rabbitmq.set(Mode::Pass);
        let _relay = stack.relay().start_ready().await;
        eventually("the event is applied", async || {
            (wait(&daemon, "tally", &id, "1s").await.0 == 200).then_some(())
        })
        .await;
        for server in [&mysql, &postgres] {
            server.cut();
            let (status, reason) = wait(&daemon, "tally", &id, "1s").await;
            assert_eq!(status, 200, "a lost connection: {reason}");
        }
    })
    .await;
}
