//! Prints the results of commands.

use clap::Args;
use daemon::{Exit, Failure};
use serde::Serialize;

/// The output format of a command.
#[derive(Args, Debug, Clone, Copy, Default)]
pub(crate) struct Format {
    /// Print JSON, for scripts.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Format {
    /// Prints a result: as JSON with `--json`, otherwise as text.
    pub(crate) fn print<T: Serialize>(
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
pub(crate) fn say(text: &str) {
    println!("{text}");
}
