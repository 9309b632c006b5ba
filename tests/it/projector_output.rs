//! What the commands of the projector print: text for people, JSON for scripts.

use harness::{Program, event, eventually, write_projection};
use serde_json::{Value, json};

use crate::projector::{TALLY, tested, wait_for, with_projector};

/// Runs a command with `--json`. Its output is one JSON value, whatever the exit code.
async fn report(program: Program) -> Value {
    let output = program.arg("--json").output().await;
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Every command that reports prints JSON with `--json`.
#[tokio::test(flavor = "multi_thread")]
async fn every_report_is_json_on_request() {
    with_projector(async |stack, _projector| {
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&1.into())]).await;
        wait_for(stack, "order-1", "1").await;
        let of =
            async |arguments: &str| report(stack.projector(TALLY).args(arguments.split(' '))).await;
        assert_eq!(of("status").await["projections"][0]["projection"], "tally");
        assert_eq!(of("reconcile --grace 0s").await[0]["projection"], "tally");
        assert_eq!(of("rebuild status").await, json!([{ "projection": "tally", "rebuild": null }]));
        assert_eq!(of("rebuild start tally --dry-run").await["events"], 1);
        assert_eq!(
            of("topology diff").await,
            json!([{ "projection": "tally", "differences": [] }])
        );
        assert_eq!(of("verify tally").await["drift"], json!([]));
        for list in ["parked list tally", "parked skipped tally", "dead list tally"] {
            assert_eq!(of(list).await, json!([]), "{list}");
        }
        let shown = of("show tally").await;
        assert_eq!(shown[0]["table"], "tally");
        assert_eq!(shown[0]["columns"][0], "stream_id");
        assert_eq!(shown[0]["rows"][0][0], "order-1");
        let checked = of("check").await;
        assert_eq!(checked["projections"][0]["handlers"][0]["handler"], "Tested", "{checked}");
        assert_eq!(checked["mistakes"], json!([]));
        let checked = of("check --offline").await;
        assert_eq!(checked["projections"][0]["projection"], "tally", "{checked}");

        let folder = stack.folder().join("wrong");
        write_projection(&folder, "wrong", &[("tables.sql", "CREATE TABL wrong (id INT)")]);
        let checked = report(stack.projector(&folder).arg("check")).await;
        assert!(
            checked["mistakes"][0]["file"].as_str().unwrap().ends_with("tables.sql"),
            "{checked}"
        );
    })
    .await;
}

/// A parked stream and the decisions about it are JSON too, with the payload only on request. Texts have
/// numbers as people write them.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_stream_and_its_decisions_are_json_on_request() {
    with_projector(async |stack, _projector| {
        let _relay = stack.relay().start_ready().await;
        let data = json!({ "name": "canary-5d1" });
        stack.append("order-7", &[event("Tested", &data), tested(&2.into())]).await;
        let tally = |arguments: &str| stack.projector(TALLY).args(arguments.split(' '));
        eventually("the stream is parked", async || {
            let listed = tally("parked list tally").succeed().await;
            (listed.contains("order-7") && listed.contains("1 attempt,")).then_some(())
        })
        .await;
        let shown = report(tally("parked show tally order-7")).await;
        assert_eq!((&shown["stream_id"], &shown["version"]), (&json!("order-7"), &json!(1)));
        assert!(!shown.to_string().contains("canary"), "{shown}");
        let shown = report(tally("parked show tally order-7 --payload")).await;
        let payload: Value = serde_json::from_str(shown["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload, data);
        let text = tally("parked show tally order-7").succeed().await;
        assert!(text.contains("stream    order-7") && !text.contains("canary"), "{text}");

        let retried = report(tally("parked retry tally order-7")).await;
        assert_eq!(
            (&retried["resumed"], &retried["parked"][0]["stream"]),
            (&json!(0), &json!("order-7"))
        );
        let text = tally("parked retry tally --all").fail(1).await;
        assert!(text.contains("0 streams go on, 1 stays parked"), "{text}");
        let skip = ["parked", "skip", "tally", "order-7", "--reason", "a test"];
        let skipped = report(stack.projector(TALLY).args(skip)).await;
        assert_eq!((&skipped["stream"], &skipped["applied"]), (&json!("order-7"), &json!(1)));
    })
    .await;
}
