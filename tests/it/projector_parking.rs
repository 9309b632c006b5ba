//! Events that cannot be applied: one, many, and all.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Stack, event, eventually, within, write_projection};
use serde_json::{Value, json};
use sqlx::Executor;

use crate::projector::{TALLY, applied, tested, wait_for};

/// A copy of the test projection with a different handler.
fn with_handler(stack: &Stack, sql: &str) -> PathBuf {
    let folder = stack.folder().join("projections");
    let to = folder.join("tally");
    fs::create_dir_all(&to).unwrap();
    let from = harness::root().join(TALLY).join("tally");
    for file in ["projection.toml", "tables.sql", "Tested.sql"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    if !sql.is_empty() {
        fs::write(to.join("Tested.sql"), sql).unwrap();
    }
    folder
}

async fn sum(stack: &Stack) -> i64 {
    sqlx::query_scalar("SELECT CAST(COALESCE(SUM(applied), 0) AS SIGNED) FROM tally")
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap()
}

async fn append_to(stack: &Stack, streams: u32, version: i32, data: &Value) {
    sqlx::query(
        "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
         SELECT gen_random_uuid(), 'order-' || s, $2, 'Tested', $3::jsonb FROM generate_series(1, $1) s",
    )
    .bind(i64::from(streams))
    .bind(i64::from(version))
    .bind(data.to_string())
    .execute(&mut stack.postgres().await)
    .await
    .unwrap();
}

/// A poison event does not delay the other 999 streams. After a retry with a fixed handler its stream
/// has caught up, without a trace of the failure.
#[tokio::test(flavor = "multi_thread")]
async fn one_poison_event_among_1000_streams() {
    Stack::run(async |stack| {
        let projector = stack.projector(TALLY);
        projector.clone().arg("migrate").succeed().await;
        let mut daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1)), event("Tested", &json!({ "n": "x" }))]).await;
        append_to(stack, 1, 3, &json!({ "n": 3 })).await;
        eventually("the stream is parked", async || {
            (daemon.metric("projector_events_total{projection=\"tally\",outcome=\"parked\"}").await > 0.5)
                .then_some(())
        })
        .await;
        for version in 1..=5 {
            let begun = Instant::now();
            sqlx::query(
                "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
                 SELECT gen_random_uuid(), 'order-' || s, $1, 'Tested', '{\"n\": 1}'
                 FROM generate_series(2, 1000) s",
            )
            .bind(version)
            .execute(&mut stack.postgres().await)
            .await
            .unwrap();
            within(Duration::from_secs(20), "the other 999 streams are applied", async || {
                (sum(stack).await == 1 + 999 * version).then_some(())
            })
            .await;
            println!("999 events of 999 streams were applied {:?} after the append began", begun.elapsed());
        }
        // The fixed handler accepts the value of the poison event.
        let fixed = with_handler(
            stack,
            "INSERT INTO tally (stream_id, applied, total, versions)
             VALUES (:stream_id, 1, CASE WHEN CONCAT(:data.n) = 'x' THEN '2' ELSE CONCAT(:data.n) END, :stream_version)
             ON DUPLICATE KEY UPDATE applied = applied + 1, versions = CONCAT(versions, ',', :stream_version);
             INSERT INTO tally_total (id, applied) VALUES (1, 1) ON DUPLICATE KEY UPDATE applied = applied + 1;",
        );
        let retry = stack.projector(&fixed).args(["parked", "retry", "tally", "order-1"]);
        let output = retry.fail(1).await;
        assert!(output.contains("these files of tally are not in service"), "{output}");
        daemon.terminate().await;
        let _fixed = stack.projector(&fixed).start_ready().await;
        retry.succeed().await;
        assert_eq!(applied(stack, "order-1").await.as_deref(), Some("1,2,3"));
        let total: i64 = sqlx::query_scalar("SELECT CAST(applied AS SIGNED) FROM tally_total")
            .fetch_one(&mut stack.mysql().await)
            .await
            .unwrap();
        assert_eq!(total, 999 * 5 + 3);
    })
    .await;
}

/// A handler that fails for every event pauses the projection, which then does not park all streams.
/// Readiness, metrics and log report the pause. With a fixed handler the projection continues, and no
/// event is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_500_poison_events_pauses_the_projection() {
    Stack::run(async |stack| {
        let wrong = with_handler(
            stack,
            "INSERT INTO tally (stream_id, applied, total, versions)
            VALUES (:stream_id, 1, :data.nn, :stream_version)",
        );
        let projector = stack.projector(&wrong);
        projector.clone().arg("migrate").succeed().await;
        let mut daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_to(stack, 500, 1, &json!({ "n": 1 })).await;
        let report = eventually("readiness reports the pause", async || {
            let (status, body) = daemon.get("/readyz").await?;
            (status == 503 && body.contains("paused")).then_some(body)
        })
        .await;
        assert!(report.contains("streams could not go on"), "{report}");
        assert!(report.contains("the event has no :data.nn"), "{report}");
        eventually("a metric reports the pause", async || {
            (daemon.metric("projector_paused{projection=\"tally\"}").await > 0.5).then_some(())
        })
        .await;
        let status = projector.clone().args(["status", "--json"]).output().await;
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let status = &status["projections"][0];
        assert_eq!(status["state"], "paused");
        assert!(status["parked"].as_i64().unwrap() <= 100, "{status:#}");
        append_to(stack, 500, 2, &json!({ "n": 1 })).await;

        daemon.terminate().await;
        with_handler(stack, "");
        // With these files nothing goes on before a projector has put them in service.
        let output = projector.clone().args(["resume", "tally"]).fail(1).await;
        assert!(output.contains("these files of tally are not in service"), "{output}");
        let daemon = projector.start();
        eventually("the fixed handler is in service", async || {
            let (status, body) = daemon.get("/readyz").await?;
            (status == 503 && body.contains("paused")).then_some(())
        })
        .await;
        projector.clone().args(["resume", "tally"]).succeed().await;
        daemon.ready().await;
        projector.clone().args(["parked", "retry", "tally", "--all"]).succeed().await;
        within(Duration::from_secs(30), "everything is applied", async || {
            (sum(stack).await == 1_000).then_some(())
        })
        .await;
        assert!(daemon.metric("projector_paused{projection=\"tally\"}").await < 0.5);
        wait_for(stack, "order-1", "1,2").await;
        wait_for(stack, "order-500", "1,2").await;
    })
    .await;
}

/// An UPDATE that finds no row is an error only where the handler requires a row.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_must_find_its_row_where_the_handler_says_so() {
    Stack::run(async |stack| {
        let folder = with_handler(
            stack,
            "-- projector: rows = 1
             UPDATE tally SET applied = applied + 1, versions = CONCAT(versions, ',', :stream_version)
             WHERE stream_id = :stream_id",
        );
        let projector = stack.projector(&folder);
        projector.clone().arg("migrate").succeed().await;
        let mut mysql = stack.mysql().await;
        for stream in 1..=20 {
            let insert = format!("INSERT INTO tally VALUES ('order-{stream}', 0, 0, '0')");
            mysql.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
        }
        mysql.execute("DELETE FROM tally WHERE stream_id = 'order-7'").await.unwrap();
        let _daemon = projector.start_ready().await;
        let _relay = stack.relay().start_ready().await;
        append_to(stack, 20, 1, &json!({})).await;
        within(Duration::from_secs(20), "the others are applied", async || {
            (sum(stack).await == 19).then_some(())
        })
        .await;
        let list = projector.clone().args(["parked", "list", "tally"]).succeed().await;
        assert!(list.contains("order-7  version 1"), "{list}");
        assert!(list.contains("Tested.sql:2:14: rows = 0, and its directive says rows = 1"), "{list}");
        mysql.execute("INSERT INTO tally VALUES ('order-7', 0, 0, '0')").await.unwrap();
        projector.args(["parked", "retry", "tally", "order-7"]).succeed().await;
        wait_for(stack, "order-7", "0,1").await;
    })
    .await;
}

/// The reason of a parked stream is about its event, and names no row. Method: MySQL counts the rows that a
/// subquery reads too, and says "at row 2" of an insert of one row.
#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_a_parked_stream_names_no_row() {
    Stack::run(async |stack| {
        let folder = stack.folder().join("projections");
        write_projection(
            &folder,
            "picked",
            &[
                (
                    "tables.sql",
                    "CREATE TABLE known (id VARCHAR(255) PRIMARY KEY, name VARCHAR(30));
                     CREATE TABLE picked (id VARCHAR(255) PRIMARY KEY, name VARCHAR(3))",
                ),
                ("Known.sql", "INSERT INTO known (id, name) VALUES (:stream_id, :data.name)"),
                (
                    "Picked.sql",
                    "INSERT INTO picked (id, name)
                     VALUES (:stream_id, (SELECT k.name FROM known AS k WHERE k.id = :stream_id))",
                ),
            ],
        );
        let projector = stack.projector(&folder);
        projector.clone().arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let _daemon = projector.start_ready().await;
        let events = [event("Known", &json!({ "name": "too long" })), event("Picked", &json!({}))];
        stack.append("order-1", &events).await;
        let reason = eventually("the stream is parked", async || {
            let list =
                projector.clone().args(["parked", "list", "picked", "--json"]).succeed().await;
            let list: Value = serde_json::from_str(&list).unwrap();
            list[0]["reason"].as_str().map(str::to_owned)
        })
        .await;
        assert!(
            reason.ends_with("MySQL refused the statement: Data too long for column 'name' (1406)"),
            "{reason}"
        );
    })
    .await;
}

/// A payload reaches the table as data and never as SQL, whatever it contains.
#[tokio::test(flavor = "multi_thread")]
async fn no_payload_becomes_sql() {
    let corpus = injections();
    assert!(corpus.len() >= 300, "{}", corpus.len());
    Stack::run(async |stack| {
        let folder = stack.folder().join("projections");
        let write = |name, text| write_projection(&folder, "kept", &[(name, text)]);
        write(
            "tables.sql",
            "CREATE TABLE kept (stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
             version INT, text TEXT, upper TEXT, meta TEXT, doc JSON, PRIMARY KEY (stream_id, version));
             CREATE TABLE latest (stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY, text TEXT)",
        );
        write(
            "Kept.sql",
            "INSERT INTO kept (stream_id, version, text, upper, meta, doc)
             VALUES (:stream_id, :stream_version, :data.text, CONCAT(:event_type, ' '), :metadata.text, :data);
             INSERT INTO latest (stream_id, text) VALUES (:stream_id, :data.text)
             ON DUPLICATE KEY UPDATE text = :data.text",
        );
        let projector = stack.projector(&folder);
        projector.clone().arg("migrate").succeed().await;
        let schema = async || {
            sqlx::query_scalar::<_, String>(
                "SELECT CAST(CONCAT_WS('.', table_name, column_name, column_type) AS CHAR) AS c
                 FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY c",
            )
            .fetch_all(&mut stack.mysql().await)
            .await
            .unwrap()
        };
        let before = schema().await;
        let _relay = stack.relay().start();
        let _daemon = projector.start_ready().await;
        for (index, text) in corpus.iter().enumerate() {
            let mut kept = event("Kept", &json!({ "text": text }));
            kept["metadata"] = json!({ "text": text });
            stack.append(&format!("order-{}", index % 7), &[kept]).await;
        }
        let rows: Vec<(String, String)> = within(Duration::from_mins(2), "all are kept", async || {
            let rows = sqlx::query_as("SELECT text, meta FROM kept")
                .fetch_all(&mut stack.mysql().await)
                .await
                .unwrap();
            (rows.len() == corpus.len()).then_some(rows)
        })
        .await;
        let mut texts: Vec<String> = rows.iter().map(|(text, _)| text.clone()).collect();
        assert!(rows.iter().all(|(text, meta)| text == meta));
        let mut wanted = corpus.clone();
        texts.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(texts, wanted);
        assert_eq!(schema().await, before);
    })
    .await;
}

/// Strings that end literals, comments or statements in some SQL dialect.
fn injections() -> Vec<String> {
    let ends = [
        "'", "\"", "`", "')", "\")", "\\'", "\\\\'", "''", "*/", "\n", ";", "0", "%27", "\u{2019}",
        "１",
    ];
    let bodies = [
        "; DROP TABLE kept; -- ",
        " OR 1=1 -- ",
        " OR '1'='1",
        " UNION SELECT user, password FROM mysql.user -- ",
        "; SHUTDOWN; #",
        "/*! DROP TABLE kept */",
        "; COMMIT; DELETE FROM kept__streams; ",
        " AND SLEEP(9) -- ",
        "); INSERT INTO kept VALUES ('x",
        "}]; {\"a\": \"",
        "$[0]",
        "\\u0027 OR 1=1",
        "?",
        ":data.text",
        ":stream_id",
        "{{7*7}}",
        "${jndi:ldap://x}",
        "<script>",
        "NULL",
        "\\",
        "\\\\",
        "🎉' OR '🎉",
    ];
    ends.iter().flat_map(|end| bodies.iter().map(move |body| format!("{end}{body}"))).collect()
}
