//! Moving the event store to another server by logical replication, as OPERATIONS.md describes it.

use std::collections::HashSet;
use std::fs;

use harness::{Daemon, PostgresServer, Stack, Tap, event, eventually, root};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::projector::{TALLY, tested, wait_for};

/// The blocks of code in a step of the document.
fn step(number: usize) -> Vec<String> {
    let text = fs::read_to_string(root().join("OPERATIONS.md")).unwrap();
    let section = text.split("### Upgrading PostgreSQL").nth(1).unwrap();
    let begin = section.split(&format!("\n{number}. ")).nth(1).expect("the step is documented");
    let step = begin.split(&format!("\n{}. ", number + 1)).next().unwrap();
    let step = step.split("\n## ").next().unwrap();
    let blocks = step.split("```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap().1.to_owned()).collect()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// A value of a type that the caller names.
async fn value<T>(connection: &mut PgConnection, sql: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// Appends `events` events to each of `streams` streams. Returns their ids.
async fn fill(
    connection: &mut PgConnection,
    category: &str,
    streams: usize,
    events: usize,
) -> Vec<String> {
    let mut ids = Vec::new();
    for stream in 1..=streams {
        let events: Vec<Value> = (0..events).map(|_| tested(&json!(1))).collect();
        ids.extend(events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()));
        harness::append(connection, &format!("{category}-{stream}"), None, &json!(events))
            .await
            .unwrap();
    }
    ids
}

/// The rows of a table, as text.
async fn rows(connection: &mut PgConnection, table: &str) -> Vec<String> {
    let sql = format!("SELECT t::text FROM {table} AS t ORDER BY 1");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
}

async fn is_equal(old: &mut PgConnection, new: &mut PgConnection) -> bool {
    for table in [
        "events",
        "outbox",
        "outbox_audit",
        "outbox_holds",
        "outbox_lanes",
        "outbox_relay_migrations",
    ] {
        if rows(old, table).await != rows(new, table).await {
            return false;
        }
    }
    true
}

async fn subscribe(old: &PostgresServer, new: &mut PgConnection) {
    let [_, subscribe] = &step(2)[..] else { panic!("step 2 has two blocks") };
    assert!(subscribe.contains("host=old dbname=shop user=replication"));
    run(new, &subscribe.replace("host=old dbname=shop user=replication", old.url())).await;
}

async fn initial_copy(new: &mut PgConnection) {
    let [left] = &step(3)[..] else { panic!("step 3 has one block") };
    eventually("the initial copy ends", async || {
        (value::<i64>(new, left).await == 0).then_some(())
    })
    .await;
}

async fn says(daemon: &Daemon, reason: &str) {
    eventually(&format!("readiness says: {reason}"), async || {
        let (status, body) = daemon.get("/readyz").await?;
        (status == 503 && body.contains(reason)).then_some(())
    })
    .await;
}

/// The documented upgrade moves everything while the daemons work, no event is lost, and daemons that start too
/// early wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_event_store_moves_to_a_new_server_by_logical_replication() {
    Stack::run_empty(async |stack| {
        let server = |side| PostgresServer::start(&format!("{}_{side}", stack.name()));
        let (Some(old), Some(new)) = (server("old"), server("new")) else {
            println!("SKIPPED: POSTGRES_PROGRAM does not name a program");
            return;
        };
        let relay_of = |server: &PostgresServer| stack.relay().env("EVENT_STORE_URL", server.url());
        let projector_of =
            |server: &PostgresServer| stack.projector(TALLY).env("EVENT_STORE_URL", server.url());
        let urls = [format!("OLD={}", old.url()), format!("NEW={}", new.url())];
        let urls = [&*urls[0], &*urls[1]];

        // The old server at work, with a parked stream and a delayed event.
        let tap = Tap::open(stack).await;
        relay_of(&old).arg("migrate").succeed().await;
        projector_of(&old).arg("migrate").succeed().await;
        let mut relay = relay_of(&old)
            .env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "4000")
            .env("OUTBOX_RELAY__RELAY__MAX_ATTEMPTS", "1")
            .start_ready()
            .await;
        let mut projector = projector_of(&old).start_ready().await;
        let mut on_old = old.connect().await;
        let mut ids = fill(&mut on_old, "order", 10, 5).await;
        let large = event("Large", &json!({ "text": "x".repeat(5_000) }));
        let parked = json!([large, event("Small", &json!({}))]);
        harness::append(&mut on_old, "large-1", None, &parked).await.unwrap();
        run(
            &mut on_old,
            "INSERT INTO outbox (event_id, event_type, routing_key, payload, available_at)
             VALUES (gen_random_uuid(), 'Delayed', 'mail.delayed', '{}', now() + interval '1 hour')",
        )
        .await;
        tap.wait_for(ids.len()).await;

        // Steps 1 to 3, while events arrive.
        old.shell(&urls, &step(1)[0]);
        run(&mut on_old, &step(2)[0]).await;
        let mut on_new = new.connect().await;
        subscribe(&old, &mut on_new).await;
        ids.extend(fill(&mut on_old, "mail", 10, 5).await);
        initial_copy(&mut on_new).await;
        ids.extend(fill(&mut on_old, "order", 5, 1).await);
        tap.wait_for(ids.len()).await;
        let early_relay = relay_of(&new).start();
        says(&early_relay, "through the subscription upgrade").await;

        // Step 4. The relay leaves pending events behind, and the last append is rolled back.
        relay.terminate().await;
        projector.terminate().await;
        ids.extend(fill(&mut on_old, "order", 5, 1).await);
        run(&mut on_old, "BEGIN").await;
        fill(&mut on_old, "order", 1, 1).await;
        run(&mut on_old, "ROLLBACK").await;
        let last = "SELECT last_value FROM events_position_seq";
        let last: i64 = value(&mut on_old, last).await;
        run(&mut on_old, &step(4)[0]).await;
        drop(on_old);
        let mut on_old = old.connect().await;
        let late = json!([tested(&json!(1))]);
        let refused = harness::append(&mut on_old, "order-1", None, &late).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "25006", "{refused}");

        // Step 5.
        let (end, arrived) = step(5)[0].split_once(';').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let end: String = value(&mut on_old, &end.replace("()", "()::text")).await;
        assert!(arrived.contains("0/1A2B3C4"));
        eventually("the new server has everything", async || {
            let arrived = arrived.replace("0/1A2B3C4", &end);
            value::<bool>(&mut on_old, &arrived).await.then_some(())
        })
        .await;
        assert!(is_equal(&mut on_old, &mut on_new).await);
        let errors = "SELECT sum(apply_error_count + sync_error_count)::bigint
                      FROM pg_stat_subscription_stats";
        assert_eq!(value::<i64>(&mut on_new, errors).await, 0);

        // Steps 6 to 8. Without step 7, nothing is published.
        run(&mut on_new, &step(6)[0]).await;
        let mut early_projector = projector_of(&new).start();
        for daemon in [&early_relay, &early_projector] {
            says(daemon, "events_position_seq in PostgreSQL is at 0, but there are events").await;
        }
        relay_of(&new).arg("status").fail(69).await;
        assert_eq!(tap.seen().iter().filter(|seen| ids[ids.len() - 5..].contains(&seen.event_id)).count(), 0);
        new.shell(&urls, &step(7)[0]);
        early_relay.ready().await;
        early_projector.ready().await;
        for stream in 1..=5 {
            wait_for(stack, &format!("order-{stream}"), "1,2,3,4,5,6,7").await;
        }

        // Appends go on behind the last position, and the parked stream can be retried.
        let id = fill(&mut on_new, "order", 1, 1).await;
        let position = "SELECT max(position) FROM events";
        assert_eq!(value::<i64>(&mut on_new, position).await, last + 1);
        ids.extend(id);
        wait_for(stack, "order-1", "1,2,3,4,5,6,7,8").await;
        relay_of(&new).arg("parked").arg("retry").arg("--all").succeed().await;
        let seen = tap.wait_for(ids.len() + 2).await;
        let seen: HashSet<_> = seen.iter().map(|message| &message.event_id).collect();
        assert!(ids.iter().all(|id| seen.contains(id)));
        eventually("only the delayed event is not processed", async || {
            let left = "SELECT count(*) FROM outbox WHERE processed_at IS NULL";
            (value::<i64>(&mut on_new, left).await == 1).then_some(())
        })
        .await;
        eventually("the floor rises", async || {
            let risen = "SELECT (SELECT last_value FROM outbox_floor) > max(id) FROM outbox";
            value::<bool>(&mut on_new, risen).await.then_some(())
        })
        .await;
        early_projector.terminate().await;
    })
    .await;
}

/// A new server whose tables `outbox-relay migrate` has created receives the rows too. If it was not emptied first,
/// the initial copy goes on once it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_migrated_server_can_be_the_subscriber() {
    Stack::run_empty(async |stack| {
        let server = |side| PostgresServer::start(&format!("{}_{side}", stack.name()));
        let (Some(old), Some(new)) = (server("old"), server("new")) else {
            println!("SKIPPED: POSTGRES_PROGRAM does not name a program");
            return;
        };
        for server in [&old, &new] {
            stack.relay().env("EVENT_STORE_URL", server.url()).arg("migrate").succeed().await;
        }
        let (mut on_old, mut on_new) = (old.connect().await, new.connect().await);
        fill(&mut on_old, "order", 10, 5).await;
        run(&mut on_old, "UPDATE outbox SET processed_at = now() WHERE id <= 20").await;
        run(&mut on_old, &step(2)[0]).await;
        subscribe(&old, &mut on_new).await;
        eventually("a table that was not emptied is not copied", async || {
            let errors = "SELECT sum(sync_error_count)::bigint FROM pg_stat_subscription_stats";
            (value::<i64>(&mut on_new, errors).await > 0).then_some(())
        })
        .await;
        run(&mut on_new, &step(1)[1]).await;
        initial_copy(&mut on_new).await;
        fill(&mut on_old, "order", 10, 5).await;
        run(&mut on_old, "UPDATE outbox SET processed_at = now() WHERE id <= 40").await;
        run(&mut on_old, "DELETE FROM outbox WHERE id <= 10").await;
        eventually("both servers have the same rows", async || {
            is_equal(&mut on_old, &mut on_new).await.then_some(())
        })
        .await;
    })
    .await;
}

/// Each trigger fires where the document says, and only a superuser gets around the capture.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_fire_where_the_document_says() {
    Stack::run(async |stack| {
        let mut connection = stack.postgres().await;
        let triggers: Vec<(String, String)> = sqlx::query_as(
            "SELECT tgname::text, CASE tgenabled WHEN 'O' THEN 'origin' WHEN 'A' THEN 'always' END
             FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let text = fs::read_to_string(root().join("OPERATIONS.md")).unwrap();
        let section = text.split("### Triggers").nth(1).unwrap().split("\n### ").next().unwrap();
        assert_eq!(section.matches("\n| `").count(), triggers.len());
        for (name, mode) in triggers {
            assert!(section.contains(&format!("\n| `{name}` | {mode} |")), "{name} is {mode}");
        }

        let role = format!("{}_application", stack.name());
        let replica = "SET session_replication_role = replica";
        run(&mut connection, &format!("CREATE ROLE {role}; SET ROLE {role}")).await;
        let refused = sqlx::raw_sql(replica).execute(&mut connection).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "42501", "{refused}");
        run(&mut connection, &format!("RESET ROLE; DROP ROLE {role}; {replica}")).await;
        fill(&mut connection, "order", 1, 1).await;
        assert_eq!(value::<i64>(&mut connection, "SELECT count(*) FROM outbox").await, 0);
        let change = sqlx::raw_sql("DELETE FROM events").execute(&mut connection);
        let refused = change.await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "ES008", "{refused}");
        let report = stack.relay().arg("reconcile").fail(65).await;
        assert!(report.contains("1 event is not in the outbox"), "{report}");
        stack.relay().arg("republish").arg("--all").succeed().await;
        assert_eq!(value::<i64>(&mut connection, "SELECT count(*) FROM outbox").await, 1);
        connection.close().await.unwrap();
    })
    .await;
}
