//! Settings and projections with mistakes.

use std::fs;

use harness::{Stack, write_projection};

use crate::operations::SHOP;

/// A program reports all errors of its configuration together, without secrets.
#[tokio::test(flavor = "multi_thread")]
async fn every_configuration_error_is_reported_with_64() {
    Stack::run_empty(async |stack| {
        let output = stack
            .relay()
            .arg("run")
            .env("OUTBOX_RELAY__RELAY__WORKERS", "none")
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "15s")
            .env("OUTBOX_RELAY__RELAY__CLAIM_TIMEOUT", "10s")
            .env("OUTBOX_RELAY__RELAY__BATCHSIZE", "5")
            .env("AMQP_URL", "not a url")
            .fail(64)
            .await;
        for error in [
            "relay.workers is not an integer from 1 to 64",
            "relay.confirm_timeout must be shorter than relay.claim_timeout",
            "unknown key relay.batchsize (environment variable OUTBOX_RELAY__RELAY__BATCHSIZE)",
            "rabbitmq.url is not a URL (environment variable AMQP_URL)",
        ] {
            assert!(output.contains(error), "{output}\nshould contain\n{error}");
        }
        // The error omits the text of the line, which may contain a password.
        let broken = stack.folder().join("broken.toml");
        fs::write(&broken, "[postgres]\nurl = \"postgres://app:secret@host/app\n").unwrap();
        let show = stack.relay().arg("config").arg("show").arg("--config");
        let output = show.arg(broken.display().to_string()).fail(64).await;
        assert!(output.contains("broken.toml, line 2: ") && !output.contains("secret"), "{output}");
        let file = stack.folder().join("wrong.toml");
        fs::write(&file, "[projector]\nprefetch = 0\n[relay]\nworkers = 1\n").unwrap();
        let run = stack.projector(SHOP).arg("run").arg("--config").arg(file.display().to_string());
        let output = run.fail(64).await;
        assert!(output.contains("projector.prefetch is not an integer from 1 to 2000"), "{output}");
    })
    .await;
}

/// One run reports all wrong values. Method: both ends of every range, and every pair of contradictory
/// values.
#[tokio::test(flavor = "multi_thread")]
async fn all_out_of_range_and_contradictory_values_are_reported_at_once() {
    Stack::run_empty(async |stack| {
        for (what, wrong) in [
            (
                "too low",
                [
                    ("postgres.statement_timeout", "999ms"),
                    ("relay.workers", "0"),
                    ("relay.lanes_per_claim", "0"),
                    ("relay.batch_size", "0"),
                    ("relay.batch_bytes", "0"),
                    ("relay.confirm_timeout", "0s"),
                    ("relay.claim_timeout", "1s"),
                    ("relay.poll_min", "0s"),
                    ("relay.poll_max", "0s"),
                    ("relay.max_message_bytes", "0"),
                    ("relay.retry_min", "0s"),
                    ("relay.retry_max", "0s"),
                    ("relay.reconnect_max", "99ms"),
                    ("relay.max_attempts", "0"),
                    ("relay.discard_unroutable", "order*"),
                    ("relay.retention", "-1s"),
                    ("relay.notify", "maybe"),
                ],
            ),
            (
                "too high",
                [
                    ("postgres.statement_timeout", "301s"),
                    ("relay.workers", "65"),
                    ("relay.lanes_per_claim", "65"),
                    ("relay.batch_size", "10001"),
                    ("relay.batch_bytes", "268435457"),
                    ("relay.confirm_timeout", "19s"),
                    ("relay.claim_timeout", "20s"),
                    ("relay.poll_min", "11s"),
                    ("relay.poll_max", "61s"),
                    ("relay.max_message_bytes", "16777217"),
                    ("relay.retry_min", "61s"),
                    ("relay.retry_max", "25h"),
                    ("relay.reconnect_max", "31s"),
                    ("relay.max_attempts", "1000001"),
                    ("relay.discard_unroutable", "a.#b"),
                    ("relay.retention", "11years"),
                    ("relay.notify", "1"),
                ],
            ),
        ] {
            let run = wrong.iter().fold(stack.relay().arg("run"), |run, (key, value)| {
                run.env(&format!("OUTBOX_RELAY__{}", key.replace('.', "__").to_uppercase()), value)
            });
            let output = run.fail(64).await;
            for (key, _) in wrong {
                assert!(output.contains(&format!("- {key} is not ")), "{key} {what}: {output}");
            }
            assert!(output.contains(&format!("{} errors", wrong.len())), "{output}");
        }
        let contradictions = stack
            .relay()
            .arg("run")
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "10s")
            .env("OUTBOX_RELAY__RELAY__CLAIM_TIMEOUT", "10s")
            .env("OUTBOX_RELAY__RELAY__POLL_MIN", "2s")
            .env("OUTBOX_RELAY__RELAY__POLL_MAX", "1s")
            .env("OUTBOX_RELAY__RELAY__RETRY_MIN", "2s")
            .env("OUTBOX_RELAY__RELAY__RETRY_MAX", "1s")
            .env("OUTBOX_RELAY__POSTGRES__LISTEN_URL", &stack.postgres_url)
            .fail(64)
            .await;
        for output in [
            "relay.confirm_timeout must be shorter than relay.claim_timeout",
            "relay.poll_min must not be longer than relay.poll_max",
            "relay.retry_min must not be longer than relay.retry_max",
            "postgres.listen_url is set, but relay.notify is false",
        ] {
            assert!(contradictions.contains(output), "{contradictions}");
        }
    })
    .await;
}

/// `config show` prints each setting with its value and its origin.
#[tokio::test]
async fn config_show_prints_the_effective_configuration() {
    Stack::run_empty(async |stack| {
        let shown = stack.relay().arg("config").arg("show").succeed().await;
        assert!(shown.contains("workers = 2  # default"), "{shown}");
        assert!(shown.contains(":***@127.0.0.1"), "{shown}");
        assert!(shown.contains("# environment variable EVENT_STORE_URL"), "{shown}");
        let shown = stack.projector(SHOP).arg("config").arg("show").succeed().await;
        assert!(shown.contains("prefetch = 1000  # default"), "{shown}");
    })
    .await;
}

/// `check` reports all mistakes with file and line. `run` reports those that need no server.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_a_projection_is_reported_with_file_and_line_and_65() {
    Stack::run_empty(async |stack| {
        let folder = stack.folder().join("projections");
        let write = |name, text| write_projection(&folder, "orders", &[(name, text)]);
        write("tables.sql", "CREATE TABLE orders (id VARCHAR(255) PRIMARY KEY, n INT)");
        write("A.sql", "INSERT INTO orders (id, n)\nVALUES (:stream_id,\n        :data.n SET)");
        write("B.sql", "UPDATE orders SET m = 1\nWHERE id = :stream_id");
        let check = stack.projector(&folder).arg("check");
        let output = check.fail(65).await;
        assert!(output.contains("2 mistakes in the projections"), "{output}");
        assert!(
            output.contains("orders/A.sql:3: You have an error in your SQL syntax"),
            "{output}"
        );
        assert!(output.contains("orders/B.sql:1: Unknown column 'm'"), "{output}");

        // `run` reports the mistakes that need no server, before it connects.
        write("B.sql", "DELETE FROM orders;\nTRUNCATE orders");
        let output = stack.projector(&folder).arg("run").fail(65).await;
        assert!(output.contains("orders/B.sql:2: a handler can only INSERT, UPDATE"), "{output}");
        let offline = check.clone().arg("--offline");
        assert!(offline.fail(65).await.contains("orders/B.sql:2:"));

        fs::remove_file(folder.join("orders/B.sql")).unwrap();
        write("A.sql", "INSERT INTO orders (id, n)\nVALUES (:stream_id,\n        :data.n)");
        assert!(check.succeed().await.contains("1 projection: ok"));
        let databases: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE ?",
        )
        .bind("projector_check_%")
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap();
        assert_eq!(databases, 0, "scratch databases are left");
    })
    .await;
}
