//! The workload program.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use harness::Stack;
use serde_json::json;

fn lines(count: usize) -> Vec<String> {
    let line = |number: usize| {
        json!({ "stream_id": format!("order-{}", number % 7), "type": "Imported",
                "occurred_at": "2026-01-31T09:30:00.000Z", "data": { "number": number } })
        .to_string()
    };
    (0..count).map(line).collect()
}

async fn stored(stack: &Stack) -> Vec<(String, i64, i64)> {
    sqlx::query_as(
        "SELECT stream_id, stream_version, (data->>'number')::bigint FROM events
         ORDER BY stream_id, stream_version",
    )
    .fetch_all(&mut stack.postgres().await)
    .await
    .unwrap()
}

/// An import keeps the order of each stream. A repeated import appends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_keeps_each_stream_in_order_and_can_be_repeated() {
    Stack::run(async |stack| {
        let file = stack.folder().join("events.jsonl.gz");
        let mut zipped = GzEncoder::new(fs::File::create(&file).unwrap(), Compression::fast());
        zipped.write_all(lines(1_000).join("\n").as_bytes()).unwrap();
        zipped.finish().unwrap();
        let import = stack.workload().arg("import").arg(file.display().to_string());
        import.succeed().await;
        let events = stored(stack).await;
        assert_eq!(events.len(), 1_000);
        for stream in events.chunk_by(|a, b| a.0 == b.0) {
            assert!(stream.is_sorted_by_key(|(_, _, number)| *number), "{}", stream[0].0);
        }
        import.succeed().await;
        assert_eq!(stored(stack).await, events);
    })
    .await;
}

/// The import names a malformed line and keeps the lines before it. It continues after the line is
/// fixed.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_is_reported_and_the_lines_before_it_are_kept() {
    Stack::run(async |stack| {
        let file = stack.folder().join("events.jsonl");
        let mut lines = lines(100);
        let good = lines[60].clone();
        lines[60] = good.replace("2026-01-31", "yesterday");
        fs::write(&file, lines.join("\n")).unwrap();
        let import = stack.workload().arg("import").arg(file.display().to_string());
        let output = import.fail(65).await;
        assert!(output.contains("line 61: occurred_at: not a time such as"), "{output}");
        assert!(output.contains("the 60 events before it are imported"), "{output}");
        assert_eq!(stored(stack).await.len(), 60);
        lines[60] = good;
        fs::write(&file, lines.join("\n")).unwrap();
        import.succeed().await;
        assert_eq!(stored(stack).await.len(), 100);
    })
    .await;
}

/// The same seed generates the same events, so a repetition appends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_generated_shop_is_the_same_for_the_same_seed() {
    Stack::run(async |stack| {
        let generate = |seed: &str| {
            let program = stack.workload().arg("generate").arg("--events").arg("500");
            program.arg("--streams").arg("50").arg("--seed").arg(seed)
        };
        let count = async || {
            let count: (i64, i64) =
                sqlx::query_as("SELECT count(*), count(DISTINCT stream_id) FROM events")
                    .fetch_one(&mut stack.postgres().await)
                    .await
                    .unwrap();
            count
        };
        generate("1").succeed().await;
        let (events, streams) = count().await;
        assert!(events == 500 && streams <= 50, "{events} {streams}");
        generate("1").succeed().await;
        assert_eq!(count().await.0, 500);
        generate("2").succeed().await;
        assert_eq!(count().await.0, 1_000);
    })
    .await;
}

/// The import reports a line that is well-formed but refused by PostgreSQL, and keeps the lines
/// before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_line_is_reported_and_the_lines_before_it_are_kept() {
    Stack::run(async |stack| {
        for (round, wrong) in [
            ("\"number\":60", "\"number\":60,\"text\":\"\\u0000\""),
            ("2026-01-31T09", "2026-02-30T09"),
            ("2026-01-31T09", "2026-01-31t09"),
        ]
        .into_iter()
        .enumerate()
        {
            let file = stack.folder().join("events.jsonl");
            // With one writer, exactly the lines before the refused one are imported.
            let stream = format!("round{round}-");
            let mut lines: Vec<_> =
                lines(100).iter().map(|line| line.replace("order-", &stream)).collect();
            lines[60] = lines[60].replace(wrong.0, wrong.1);
            fs::write(&file, lines.join("\n")).unwrap();
            let import = stack.workload().arg("import").arg("--writers").arg("1");
            let output = import.arg(file.display().to_string()).fail(65).await;
            assert!(output.contains("line 61"), "{wrong:?}: {output}");
            let kept: i64 =
                sqlx::query_scalar("SELECT count(*) FROM events WHERE starts_with(stream_id, $1)")
                    .bind(&stream)
                    .fetch_one(&mut stack.postgres().await)
                    .await
                    .unwrap();
            assert_eq!(kept, 60, "{wrong:?}: {output}");
        }
    })
    .await;
}
