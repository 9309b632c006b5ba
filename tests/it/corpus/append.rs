//! Calls of `append_to_stream`.

use harness::Stack;
use serde::Deserialize;
use serde_json::json;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::{Surprises, Verdict, corpus, count, refusal, written_out};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Append {
    stream: String,
    expected: Option<i64>,
    events: String,
}

/// Every call of `append_to_stream` in the corpus has its verdict.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_append() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let mut connection = stack.postgres().await;
        let first = "00000000-0000-4000-8000-000000000001";
        let events = json!([{ "event_id": first, "type": "A", "data": {} }]).to_string();
        append(&mut connection, "order-1", None, &events).await.unwrap();
        for case in corpus::<Append>("append") {
            let (stream, events) =
                (written_out(&case.input.stream), written_out(&case.input.events));
            let mut transaction = connection.begin().await.unwrap();
            let appended = append(&mut transaction, &stream, case.input.expected, &events).await;
            let (verdict, message) = match appended {
                Err(error) => (Verdict::Refuse, refusal(&error)),
                Ok(()) => match count(&mut transaction).await {
                    1 => (Verdict::Duplicate, String::new()),
                    2 => (Verdict::Apply, String::new()),
                    count => panic!("{}: {count} events", case.name),
                },
            };
            surprises.compare(&case, verdict, &message);
            transaction.rollback().await.unwrap();
        }
        assert_eq!(count(&mut connection).await, 1);
        surprises.assert_none();
    })
    .await;
}

async fn append(
    connection: &mut PgConnection,
    stream: &str,
    expected: Option<i64>,
    events: &str,
) -> Result<(), sqlx::Error> {
    let append = sqlx::query("SELECT append_to_stream($1, $2, $3::jsonb)");
    append.bind(stream).bind(expected).bind(events).execute(connection).await.map(drop)
}
