//! Prints the results of commands.

use std::fmt::Display;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::{Exit, Failure};

/// The output format of a command.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct Format {
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

impl Format {
    /// Prints a result: as JSON with `--json`, otherwise as text.
    ///
    /// # Errors
    ///
    /// When the result cannot be written as JSON.
    pub fn print<T: Serialize>(
        self,
        result: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let output = if self.json {
            serde_json::to_string_pretty(result)
                .map_err(|error| Failure::new(Exit::Failed, error))?
        } else {
            text(result)
        };
        say(output.trim_end());
        Ok(())
    }
}

/// Prints one line of a command's result.
#[expect(clippy::print_stdout, reason = "the result of a command")]
pub fn say(text: &str) {
    println!("{text}");
}

/// A number with what it counts: `counted(1, "stream waits", "streams wait")` is "1 stream waits".
pub fn counted(number: impl Display, one: &str, many: &str) -> String {
    let number = number.to_string();
    let noun = if number == "1" { one } else { many };
    format!("{number} {noun}")
}

/// Reports on standard error how far a command is, at most every five seconds. Standard output keeps the
/// result alone.
#[derive(Debug)]
pub struct Progress(Instant);

impl Progress {
    const INTERVAL: Duration = Duration::from_secs(5);

    /// Begins. A command that ends soon reports nothing.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Reports a step, unless there was a report just now.
    #[expect(clippy::print_stderr, reason = "the progress of a command")]
    pub fn report(&mut self, text: impl FnOnce() -> String) {
        if self.0.elapsed() >= Self::INTERVAL {
            self.0 = Instant::now();
            eprintln!("{}", text());
        }
    }
}

/// The user who runs the command, for the record of operators' decisions.
pub fn actor() -> String {
    let name = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"));
    name.unwrap_or_else(|_| "unknown".to_owned())
}
