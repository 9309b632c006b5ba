//! Lines of `workload import`.

use std::fs;

use harness::Stack;
use serde::Deserialize;
use serde_json::json;

use super::{Surprises, Verdict, corpus, written_out};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    line: String,
    /// The number of events of the case that are imported before the refused one.
    #[serde(default)]
    before: i64,
}

/// The import accepts every line in the corpus, or refuses it and keeps the lines before it.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_import() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let mut connection = stack.postgres().await;
        for (number, case) in corpus::<Line>("import").into_iter().enumerate() {
            let stream = format!("order-{number}");
            let good = |place: u32| {
                json!({ "stream_id": stream, "type": "A", "data": { "place": place },
                        "occurred_at": "2026-01-31T09:30:00Z" })
                .to_string()
            };
            let file = stack.folder().join(format!("{number}.jsonl"));
            let line = written_out(&case.input.line).replace("$stream", &stream);
            let lines = [good(1), good(2), line, good(3)];
            fs::write(&file, lines.join("\n")).unwrap();
            let import = stack.workload().arg("import").arg(file.display().to_string());
            let output = import.output().await;
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let verdict = match output.status.code() {
                Some(0) => Verdict::Apply,
                Some(65) => Verdict::Refuse,
                code => panic!("{}: {code:?} {message}", case.name),
            };
            surprises.compare(&case, verdict, &message);
            let stored: i64 =
                sqlx::query_scalar("SELECT count(*) FROM events WHERE stream_id = $1")
                    .bind(&stream)
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            let expected = match verdict {
                Verdict::Apply if case.input.line.is_empty() => 3,
                Verdict::Apply => 4,
                // The lines before the refused one are kept. The lines after it are not imported.
                _ => 2 + case.input.before,
            };
            if stored != expected {
                surprises.0.push(format!("{}: {stored} events, not {expected}", case.name));
            }
        }
        surprises.assert_none();
    })
    .await;
}
