//! Exit codes, and why a program ends.

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;

/// The exit codes, documented in the README. clap itself exits with 2 on a wrong command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success, or stopped by a signal.
    Done = 0,
    /// An unexpected error, whose message describes it; or a status that needs attention.
    Failed = 1,
    /// A status that says that something does not work.
    Broken = 3,
    /// The configuration is not valid (`EX_USAGE`).
    Configuration = 64,
    /// The input is not valid, for example a projection or an import file (`EX_DATAERR`).
    Data = 65,
    /// A server cannot be reached (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A server refused the login (`EX_NOPERM`).
    Login = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a program or one of its tasks ends before the shutdown.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// The error, with its context.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Failed, error }
    }
}

/// An error and its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries include the cause in their own message.
        if !text.ends_with(&cause_text) {
            write!(text, ": {cause_text}").expect("writing to a String cannot fail");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer{0}")]
    struct Outer(&'static str, #[source] std::io::Error);

    #[test]
    fn a_cause_appears_once() {
        let inner = || std::io::Error::other("inner");
        assert_eq!(chain(&Outer("", inner())), "outer: inner");
        assert_eq!(chain(&Outer(", because inner", inner())), "outer, because inner");
    }
}
