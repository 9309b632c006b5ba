//! What `status` of either daemon concludes: whether all is well, and if not, why.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::Exit;

/// How urgent a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Everything works.
    Ok,
    /// Somebody should look: some streams wait, or something is slow.
    Attention,
    /// Events are not published or applied.
    Broken,
}

impl State {
    /// The word in the output of a command.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Attention => "attention",
            Self::Broken => "broken",
        }
    }

    /// The exit code of a command that found it.
    pub fn exit(self) -> Exit {
        match self {
            Self::Ok => Exit::Done,
            Self::Attention => Exit::Failed,
            Self::Broken => Exit::Broken,
        }
    }
}

/// Why events are not published or applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// How urgent it is.
    pub state: State,
    /// Its kind, for scripts, such as `lanes_locked`.
    pub cause: &'static str,
    /// What it is about, such as a session, a routing key or a queue.
    pub object: Option<String>,
    /// Since when it lasts, where that is known.
    pub since: Option<DateTime<Utc>>,
    /// What happens, with the object.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

impl Cause {
    /// One line for a person.
    pub fn line(&self) -> String {
        let Self { text, since, remedy, .. } = self;
        let since = since.map_or_else(String::new, |since| format!(" since {}", time(since)));
        format!("{text}{since}: {remedy}")
    }
}

/// A time for a person, to the second.
pub fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
