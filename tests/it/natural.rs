//! Read models as people write them: how many run for many events at once.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use harness::{Stack, event, root, within};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

/// The handlers that run event by event, with the place and the reason. The e-mail of a user is unique among
/// all users, so the order of two users matters.
const ONE_BY_ONE: [(&str, &str); 1] = [(
    "user_emails_unique/EmailChanged: event by event: EmailChanged.sql:2:1: ",
    "another part of the handler touches emails too, and no column equals a parameter in both",
)];

/// The projections in which every row belongs to one stream.
const OF_STREAMS: usize = 21;

/// Writes projections of `natural.sql` into a folder. Returns the folder and their names.
fn write(wanted: impl Fn(&str) -> bool) -> (TempDir, Vec<String>) {
    let text = fs::read_to_string(root().join("tests/projections/natural.sql")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for projection in text.split("\n=== ").skip(1) {
        let (title, files) = projection.split_once('\n').unwrap();
        let (name, categories) = title.split_once(": ").unwrap();
        if !wanted(name) {
            continue;
        }
        let directory = folder.path().join(name);
        fs::create_dir(&directory).unwrap();
        let categories: Vec<&str> = categories.split(", ").collect();
        let settings = format!("categories = {categories:?}\n");
        fs::write(directory.join("projection.toml"), settings).unwrap();
        for file in files.split("--- ").skip(1) {
            let (name, sql) = file.split_once('\n').unwrap();
            fs::write(directory.join(format!("{name}.sql")), sql).unwrap();
        }
        names.push(name.to_owned());
    }
    (folder, names)
}

/// The handlers of 29 of the 30 natural projections run for many events at once; for every other handler,
/// `check` names what is to blame with its file, line and column.
#[tokio::test(flavor = "multi_thread")]
async fn natural_projections_run_for_many_events_at_once() {
    let (folder, names) = write(|_| true);
    Stack::run(async |stack| {
        let check = stack.projector(folder.path().to_str().unwrap()).arg("check");
        let output = check.succeed().await;
        let mut one_by_one: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut projection = "";
        for line in output.lines() {
            match line.strip_prefix("  ") {
                None => projection = line.split(':').next().unwrap(),
                Some(handler) if handler.contains(": event by event: ") => {
                    one_by_one.entry(projection.to_owned()).or_default().push(handler);
                }
                Some(_) => {}
            }
        }
        assert_eq!(names.len(), 30);
        let found: Vec<String> = one_by_one
            .iter()
            .flat_map(|(name, handlers)| handlers.iter().map(move |it| format!("{name}/{it}")))
            .collect();
        assert_eq!(found.len(), ONE_BY_ONE.len(), "{found:#?}");
        for (found, (handler, reason)) in found.iter().zip(ONE_BY_ONE) {
            assert!(found.starts_with(handler) && found.ends_with(reason), "{found}");
        }
        let of_streams = output.matches(": each row belongs to one stream; ").count();
        assert_eq!(of_streams, OF_STREAMS, "{output}");
    })
    .await;
}

/// No handler of the incidents, or of the shop, runs event by event.
#[tokio::test(flavor = "multi_thread")]
async fn the_projections_of_this_repository_run_for_many_events_at_once() {
    Stack::run(async |stack| {
        for folder in ["tests/projections/incidents", "config/projections"] {
            let output = stack.projector(folder).arg("check").succeed().await;
            assert!(output.contains(": many events at once"), "{output}");
            assert!(!output.contains("event by event"), "{output}");
        }
    })
    .await;
}

/// Natural projections give what a person expects of them, from a queue and when one stream is rebuilt alone. A
/// stream can be rebuilt although a handler of the projection runs event by event.
#[tokio::test(flavor = "multi_thread")]
async fn natural_projections_give_what_their_authors_expect() {
    const CASES: usize = 40;
    let all = ["ledger_lines", "xes_activities", "xes_cases", "xes_previous"];
    let (folder, _) = write(|name| all.contains(&name));
    let handler = folder.path().join("xes_previous/Assigned.sql");
    let one_by_one = format!("-- projector: one by one\n{}", fs::read_to_string(&handler).unwrap());
    fs::write(handler, one_by_one).unwrap();
    Stack::run(async |stack| {
        let projector = stack.projector(folder.path().to_str().unwrap());
        projector.clone().arg("migrate").succeed().await;
        for case in 0..CASES {
            let lines = json!([{"account": "1000", "amount": 5}, {"account": "2000", "amount": -5}]);
            let case_id = format!("case-{case}");
            let assigned = |who: Value| event("Assigned", &json!({ "resource": who }));
            let events = [
                event("CaseOpened", &json!({})),
                assigned(json!("ann")),
                assigned(json!("ann")),
                assigned(Value::Null),
                assigned(json!("bob")),
            ];
            stack.append(&case_id, &events).await;
            let entry = format!("entry-{case}");
            stack.append(&entry, &[event("EntryPosted", &json!({ "lines": lines }))]).await;
        }
        let _relay = stack.relay().start_ready().await;
        let _projector = projector.clone().start_ready().await;
        let mut mysql = stack.mysql().await;
        let expected = [
            (
                "SELECT CONCAT_WS(',', COUNT(*), MIN(previous <=> NULL), MIN(last), SUM(handovers)) FROM handovers",
                format!("{CASES},1,bob,{}", 3 * CASES),
            ),
            (
                "SELECT CONCAT_WS(',', COUNT(*), SUM(line), SUM(amount)) FROM entry_lines",
                format!("{},{},0.00", 2 * CASES, 3 * CASES),
            ),
            (
                "SELECT CONCAT_WS(',', COUNT(*), SUM(events), SUM(loops), MAX(variant)) FROM cases",
                format!("{CASES},{},{},CaseOpened>Assigned>Assigned>Assigned>Assigned", 5 * CASES, 3 * CASES),
            ),
            (
                "SELECT GROUP_CONCAT(CONCAT_WS(',', activity, resource, events) ORDER BY 1 SEPARATOR ' ')
                 FROM (SELECT activity, resource, SUM(events) AS events FROM activity_stats
                       GROUP BY activity, resource ORDER BY activity, resource) AS all_months",
                format!(
                    "Assigned,(none),{CASES} Assigned,ann,{} Assigned,bob,{CASES} CaseOpened,(none),{CASES}",
                    2 * CASES
                ),
            ),
        ];
        for round in ["live", "rebuilt"] {
            for (query, wanted) in &expected {
                let what = format!("{round}: {query}");
                within(Duration::from_mins(1), &what, async || {
                    let found: Option<String> = sqlx::query_scalar(AssertSqlSafe(*query))
                        .fetch_one(&mut mysql)
                        .await
                        .unwrap();
                    (found.as_ref() == Some(wanted)).then_some(())
                })
                .await;
            }
            let wrong = "UPDATE handovers SET handovers = 99, last = 'eve' WHERE case_id = 'case-3'";
            sqlx::query(wrong).execute(&mut mysql).await.unwrap();
            let rebuild = projector.clone().args(["rebuild", "xes_previous", "--stream", "case-3"]);
            rebuild.succeed().await;
        }
    })
    .await;
}
