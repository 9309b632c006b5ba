//! Values and texts on their way from the event store to the read model.

use domain_events::{Json, Message};
use harness::{Stack, event, eventually, write_projection};
use serde_json::json;

use crate::projector::{stored, with_projector};

/// Every kind of value reaches the read model exactly as it was appended.
#[tokio::test(flavor = "multi_thread")]
async fn values_keep_every_digit_and_letter() {
    Stack::run(async |stack| {
        let folder = stack.folder().join("projections");
        let write = |name, text| write_projection(&folder, "kept", &[(name, text)]);
        write(
            "tables.sql",
            "CREATE TABLE kept (id VARCHAR(64) PRIMARY KEY, money DECIMAL(30, 10), big BIGINT,
             huge BIGINT UNSIGNED, exact DECIMAL(65, 0), text TEXT, flag BOOLEAN, nothing TEXT,
             missing TEXT, document JSON, part JSON, at DATETIME(6), recorded DATETIME(6),
             number VARCHAR(80), position BIGINT, event_type VARCHAR(200), who TEXT,
             tiny DECIMAL(65, 30), raw LONGTEXT)",
        );
        write(
            "Kept.sql",
            "INSERT INTO kept VALUES (:event_id, :data.money, :data.big, :data.huge, :data.exact,
             :data.text, :data.flag, :data.nothing, :data.missing?, :data, :data.part[1],
             :occurred_at, :recorded_at, :data.money, :position, :event_type, :metadata.who,
             :data.tiny, CAST(:data AS CHAR))",
        );
        stack.projector(&folder).arg("migrate").succeed().await;
        let _relay = stack.relay().start();
        let text = "Zoë 🎉 \u{0}'\"\\; DROP TABLE kept; -- \n ظ";
        let data = format!(
            r#"{{"money": 19.90, "big": -9007199254740993, "huge": 18446744073709551615,
                 "exact": 12345678901234567890123456789012345678901234567890123456789012345,
                 "text": {}, "flag": true, "nothing": null, "part": [0, {{"b": 1.10}}],
                 "tiny": 1.5e-9}}"#,
            serde_json::to_string(&text.replace('\u{0}', "")).unwrap()
        );
        sqlx::query(
            "SELECT append_to_stream('order-1', 0, jsonb_build_array(jsonb_build_object(
                 'event_id', gen_random_uuid(), 'type', 'Kept', 'data', $1::jsonb,
                 'metadata', '{\"who\": \"me\"}'::jsonb,
                 'occurred_at', '2026-02-28T23:59:59.999999+00:00')))",
        )
        .bind(&data)
        .execute(&mut stack.postgres().await)
        .await
        .unwrap();
        let _projector = stack.projector(&folder).start();
        let columns = "CONCAT_WS('|', money, big, huge, exact, flag, COALESCE(nothing, 'NULL'),
             COALESCE(missing, 'NULL'), part->>'$.b', at, recorded IS NOT NULL, number, position,
             event_type, who, tiny, document->'$.exact',
             raw LIKE '%\"exact\": 12345678901234567890123456789012345678901234567890123456789012345,%')";
        let sql = format!("SELECT {columns}, text FROM kept");
        let (row, kept): (String, String) = eventually("the row exists", async || {
            sqlx::query_as(sqlx::AssertSqlSafe(sql.clone()))
                .fetch_optional(&mut stack.mysql().await)
                .await
                .unwrap()
        })
        .await;
        assert_eq!(
            row,
            "19.9000000000|-9007199254740993|18446744073709551615|\
             12345678901234567890123456789012345678901234567890123456789012345|1|NULL|NULL|1.1|\
             2026-02-28 23:59:59.999999|1|19.90|1|Kept|me|0.000000001500000000000000000000|\
             1.2345678901234568e64|1"
        );
        assert_eq!(kept, text.replace('\u{0}', ""));
    })
    .await;
}

/// Every consumer gets the payload exactly as it was stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_carries_the_stored_text() {
    with_projector(async |stack, _| {
        stack.append("order-1", &[event("Tested", &json!({ "n": 19.90 }))]).await;
        let stored = stored(stack, "order-1", 1).await;
        assert_eq!(stored.data, Json::parse(r#"{"n": 19.9}"#).unwrap());
        let message = Message::encode(stored.clone(), "order.Tested".to_owned());
        assert_eq!(message.decode().unwrap(), stored);
    })
    .await;
}

/// A value that its column would change parks its stream. The reason names the statement, the parameter and
/// the column, and never the value. Without strict values, MySQL converts it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_its_column_would_change_parks_its_stream() {
    Stack::run(async |stack| {
        let folder = stack.folder().join("projections");
        let write = |name, text| write_projection(&folder, "kept", &[(name, text)]);
        write(
            "tables.sql",
            "CREATE TABLE kept (id VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY, note VARCHAR(64),
             amount DECIMAL(10, 2), at DATETIME)",
        );
        write(
            "Kept.sql",
            "\n INSERT INTO kept VALUES (:stream_id, :data.note, :data.amount, :data.at)",
        );
        let projector = stack.projector(&folder);
        projector.clone().arg("migrate").succeed().await;
        let _relay = stack.relay().start();
        let mut daemon = projector.clone().start();
        let at = "2026-01-31T12:00:00.000Z";
        let good = json!({ "note": "n", "amount": "19.90", "at": at });
        let canary = json!({ "note": { "iban": "canary-7c1d" }, "amount": 1, "at": at });
        stack.append("order-1", &[event("Kept", &good)]).await;
        stack.append("order-2", &[event("Kept", &canary)]).await;
        let rows = async || -> Vec<String> {
            sqlx::query_scalar("SELECT CONCAT_WS('|', id, note, amount, at) FROM kept ORDER BY id")
                .fetch_all(&mut stack.mysql().await)
                .await
                .unwrap()
        };
        let list = eventually("a stream is parked and the other one is applied", async || {
            let list = projector.clone().args(["parked", "list", "kept"]).succeed().await;
            (list.contains("order-2") && !rows().await.is_empty()).then_some(list)
        })
        .await;
        assert!(list.contains("Kept.sql:2:2: :data.note is an object or array"), "{list}");
        assert!(list.contains("(kept.note): convert it in the handler"), "{list}");
        assert!(!list.contains("canary-7c1d") && !daemon.log().contains("canary-7c1d"), "{list}");
        assert_eq!(rows().await, ["order-1|n|19.90|2026-01-31 12:00:00"]);

        daemon.terminate().await;
        write("projection.toml", "categories = [\"order\"]\nstrict = false");
        // A projector that starts with changed files puts them into service.
        let _daemon = projector.clone().start_ready().await;
        projector.clone().args(["parked", "retry", "kept", "order-2"]).succeed().await;
        assert_eq!(rows().await[1], "order-2|{\"iban\": \"canary-7c1d\"}|1.00|2026-01-31 12:00:00");
    })
    .await;
}

/// `projector check` warns about keys whose collation takes different values for one, about times that a
/// column rounds, and about statements that it does not understand.
#[tokio::test(flavor = "multi_thread")]
async fn check_warns_about_keys_and_times() {
    Stack::run_empty(async |stack| {
        let folder = stack.folder().join("projections");
        let write = |name, text| write_projection(&folder, "kept", &[(name, text)]);
        write(
            "tables.sql",
            "CREATE TABLE kept (
                 id VARCHAR(64) COLLATE utf8mb4_0900_ai_ci, sku VARCHAR(64) COLLATE utf8mb4_bin,
                 code CHAR(3) CHARACTER SET ascii COLLATE ascii_bin, exact VARCHAR(9) COLLATE utf8mb4_0900_bin,
                 note VARCHAR(64), at DATETIME, day DATE, fine DATETIME(6), PRIMARY KEY (id, sku, code, exact))",
        );
        write(
            "Kept.sql",
            "INSERT INTO kept (id, sku, code, exact, at, day, fine)
             VALUES (:stream_id, 'a', 'b', 'c', :occurred_at, :recorded_at, :occurred_at)",
        );
        let output = stack.projector(&folder).arg("check").succeed().await;
        let warnings: Vec<&str> = output
            .lines()
            .filter_map(|line| Some(line.split_once("warning: ")?.1.split_once("/kept/")?.1))
            .collect();
        let [id, sku, at, day] = warnings[..] else { panic!("{output}") };
        assert!(id.starts_with("tables.sql:1: the collation utf8mb4_0900_ai_ci of the key column id"));
        assert!(id.contains("'a' and 'A', for one key: use COLLATE utf8mb4_0900_bin"), "{id}");
        assert!(sku.contains("key column sku") && sku.contains("'a' and 'a '"), "{sku}");
        assert!(at.starts_with("Kept.sql:1: kept.at rounds :occurred_at"), "{at}");
        assert!(day.contains("kept.day is a DATE") && day.contains("DATE(:recorded_at)"), "{day}");
        assert!(output.contains("1 projection: ok"), "{output}");
    })
    .await;
}
