//! Prints the results of commands.

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

/// The user who runs the command, for the record of operators' decisions.
pub fn actor() -> String {
    let name = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"));
    name.unwrap_or_else(|_| "unknown".to_owned())
}
