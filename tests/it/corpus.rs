//! Bad input at every interface: its sender gets the documented answer, and all other input is
//! processed.

mod append;
mod files;
mod http;
mod import;
mod message;
mod outbox;

use std::collections::HashSet;
use std::fs;

use harness::root;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgConnection;

/// The number of cases that run at the same time where each case is a process.
const AT_ONCE: usize = 4;

/// The outcome of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// The input takes effect.
    Apply,
    /// The input took effect before, and has none now.
    Duplicate,
    /// The input has no effect by design.
    Pass,
    /// The stream is parked until an operator decides.
    Park,
    /// The message goes to the dead-letter queue.
    DeadLetter,
    /// The event is published.
    Publish,
    /// The input is refused.
    Refuse,
}

impl Verdict {
    /// Whether the outcome comes with a reason.
    fn has_reason(self) -> bool {
        matches!(self, Self::Park | Self::DeadLetter | Self::Refuse)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    case: Vec<toml::Table>,
}

struct Case<I> {
    name: String,
    verdict: Verdict,
    /// A part of the reason that the sender gets.
    reason: String,
    input: I,
}

impl<I: DeserializeOwned> Case<I> {
    /// Panics when a case lacks a reason that its verdict needs, or has one that it does not.
    fn read(mut table: toml::Table) -> Self {
        let name: String = table.remove("name").expect("a name").try_into().unwrap();
        let verdict: Verdict = table.remove("verdict").expect(&name).try_into().unwrap();
        let reason = table.remove("reason").map(|it| it.try_into().unwrap());
        assert_eq!(reason.is_some(), verdict.has_reason(), "{name}: the reason");
        let input = table.try_into().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, verdict, reason: reason.unwrap_or_default(), input }
    }
}

/// The cases of an interface.
fn corpus<I: DeserializeOwned>(interface: &str) -> Vec<Case<I>> {
    let file = root().join("tests/corpus").join(format!("{interface}.toml"));
    let text = fs::read_to_string(file).unwrap();
    let cases = toml::from_str::<Corpus>(&text).unwrap().case;
    let cases: Vec<Case<I>> = cases.into_iter().map(Case::read).collect();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "{interface}: two cases have the same name");
    cases
}

/// Replaces `{{x*300}}` with 300 times x.
fn written_out(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, behind) = after.split_once("}}").unwrap();
        let (what, times) = inside.rsplit_once('*').unwrap();
        out += before;
        out += &what.repeat(times.parse().unwrap());
        rest = behind;
    }
    out + rest
}

/// The cases whose outcome was not the expected one.
#[derive(Default)]
struct Surprises(Vec<String>);

impl Surprises {
    fn compare<I>(&mut self, case: &Case<I>, verdict: Verdict, message: &str) {
        if verdict != case.verdict || !message.contains(&case.reason) {
            let message: String = message.chars().take(400).collect();
            let (name, expected, reason) = (&case.name, case.verdict, &case.reason);
            self.0.push(format!("{name}: {verdict:?} {message:?}, not {expected:?} {reason:?}"));
        }
    }

    fn assert_none(&self) {
        assert!(self.0.is_empty(), "{} surprises:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// The SQLSTATE and the message of a refusal.
fn refusal(error: &sqlx::Error) -> String {
    let error = error.as_database_error().expect("PostgreSQL refuses the input");
    format!("{} {}", error.code().unwrap_or_default(), error.message())
}

async fn count(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(connection).await.unwrap()
}
