//! Projections and configuration files.

use std::collections::BTreeMap;
use std::fs;

use futures_util::StreamExt;
use futures_util::stream;
use harness::Stack;
use serde::Deserialize;

use super::{AT_ONCE, Case, Surprises, Verdict, corpus, written_out};
use crate::projector::TALLY;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    file: String,
    text: String,
}

/// `projector check` accepts or refuses every projection in the corpus with the documented reason.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_projection() {
    Stack::run(async |stack| {
        let check = async |(number, case): (usize, Case<Files>)| {
            let folder = stack.folder().join(format!("projections{number}"));
            let bad = folder.join("bad");
            fs::create_dir_all(&bad).unwrap();
            let tables = "CREATE TABLE bad (
                id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY, n INT)";
            fs::write(bad.join("projection.toml"), r#"categories = ["order"]"#).unwrap();
            fs::write(bad.join("tables.sql"), tables).unwrap();
            let handler = "INSERT INTO bad (id, n) VALUES (:stream_id, 1)";
            fs::write(bad.join("Tested.sql"), handler).unwrap();
            fs::write(bad.join(&case.input.file), written_out(&case.input.text)).unwrap();
            let output = stack.projector(&folder).arg("check").output().await;
            let message = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            let verdict = match output.status.code() {
                Some(0) => Verdict::Apply,
                Some(65) => Verdict::Refuse,
                code => panic!("{}: {code:?} {message}", case.name),
            };
            (case, verdict, message)
        };
        let cases = corpus::<Files>("projection").into_iter().enumerate();
        let mut checked = stream::iter(cases).map(check).buffer_unordered(AT_ONCE);
        let mut surprises = Surprises::default();
        while let Some((case, verdict, message)) = checked.next().await {
            surprises.compare(&case, verdict, &message);
        }
        surprises.assert_none();
    })
    .await;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    daemon: String,
    text: String,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    /// Environment variables to remove.
    #[serde(default)]
    without: Vec<String>,
}

/// `config show` accepts or refuses every configuration in the corpus, without printing a secret.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_configuration() {
    Stack::run_empty(async |stack| {
        let show = async |(number, case): (usize, Case<Settings>)| {
            let file = stack.folder().join(format!("{number}.toml"));
            fs::write(&file, written_out(&case.input.text)).unwrap();
            let program = match case.input.daemon.as_str() {
                "projector" => stack.projector(TALLY),
                _ => stack.relay(),
            };
            let program =
                program.bare(&case.input.without).arg("--config").arg(file.display().to_string());
            let program = program.args(["config", "show"]);
            let variables = case.input.variables.iter();
            let program = variables
                .fold(program, |program, (name, value)| program.env(name, &written_out(value)));
            let output = program.output().await;
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let verdict = match output.status.code() {
                Some(0) => Verdict::Apply,
                Some(64) => Verdict::Refuse,
                code => panic!("{}: {code:?} {message}", case.name),
            };
            let all = message.clone() + &String::from_utf8_lossy(&output.stdout);
            assert!(!all.contains("secret"), "{}: the output contains a secret: {all}", case.name);
            (case, verdict, message)
        };
        let cases = corpus::<Settings>("configuration").into_iter().enumerate();
        let mut shown = stream::iter(cases).map(show).buffer_unordered(AT_ONCE);
        let mut surprises = Surprises::default();
        while let Some((case, verdict, message)) = shown.next().await {
            surprises.compare(&case, verdict, &message);
        }
        surprises.assert_none();
    })
    .await;
}
