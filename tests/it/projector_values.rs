//! Values and texts on their way from the event store to the read model.

use domain_events::{Json, Message};
use harness::{Stack, event, eventually};
use serde_json::json;

use crate::projector::{stored, with_projector};

/// Every kind of value reaches the read model exactly as it was appended.
#[tokio::test(flavor = "multi_thread")]
async fn values_keep_every_digit_and_letter() {
    Stack::run(async |stack| {
        let folder = stack.folder().join("projections");
        let directory = folder.join("kept");
        std::fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        write("projection.toml", "categories = [\"order\"]");
        write(
            "tables.sql",
            "CREATE TABLE kept (id VARCHAR(64) PRIMARY KEY, money DECIMAL(30, 10), big BIGINT,
             huge BIGINT UNSIGNED, exact DECIMAL(65, 0), text TEXT, flag BOOLEAN, nothing TEXT,
             missing TEXT, document JSON, part JSON, at DATETIME(6), recorded DATETIME(6),
             number VARCHAR(80), position BIGINT, event_type VARCHAR(200), who TEXT,
             tiny DECIMAL(65, 30))",
        );
        write(
            "Kept.sql",
            "INSERT INTO kept VALUES (:event_id, :data.money, :data.big, :data.huge, :data.exact,
             :data.text, :data.flag, :data.nothing, :data.missing?, :data, :data.part[1],
             :occurred_at, :recorded_at, :data.money, :position, :event_type, :metadata.who,
             :data.tiny)",
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
             event_type, who, tiny)";
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
             2026-02-28 23:59:59.999999|1|19.90|1|Kept|me|0.000000001500000000000000000000"
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
