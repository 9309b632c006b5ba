//! The parts that the command lines of both daemons share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::output::Format;
use crate::settings::{Errors, Layers, Reader, Shown};
use crate::{Exit, Failure, chain};

const DEFAULTS: &str = include_str!("../../../config/default.toml");

/// Environment variables without a prefix, which both daemons and other tools use.
const ALIASES: [(&str, &str); 4] = [
    ("EVENT_STORE_URL", "postgres.url"),
    ("AMQP_URL", "rabbitmq.url"),
    ("READ_MODEL_URL", "mysql.url"),
    ("RUST_LOG", "log.filter"),
];

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Read settings from this TOML file; keys that it lacks keep their defaults.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl Common {
    /// Loads the configuration of a daemon whose environment variables start with `prefix`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is not TOML.
    pub fn reader(&self, prefix: &'static str) -> Result<Reader, Errors> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let environment: BTreeMap<String, String> = std::env::vars_os().filter_map(text).collect();
        layers(self.config.as_deref(), prefix, environment).load()
    }
}

/// The layers of a daemon whose environment variables start with `prefix`.
pub(crate) fn layers<'a>(
    file: Option<&'a Path>,
    prefix: &'static str,
    environment: BTreeMap<String, String>,
) -> Layers<'a> {
    Layers { defaults: DEFAULTS, file, aliases: &ALIASES, prefix, environment }
}

impl From<Errors> for Failure {
    fn from(errors: Errors) -> Self {
        Self::new(Exit::Configuration, errors)
    }
}

/// Prints a configuration, each key with its origin, as TOML or JSON.
///
/// # Errors
///
/// When it cannot be written as JSON.
pub fn print_settings(shown: &[Shown], format: Format) -> Result<(), Failure> {
    format.print(&shown, |shown| settings_text(shown))
}

/// A configuration as TOML, each key with its origin.
pub(crate) fn settings_text(shown: &[Shown]) -> String {
    let (mut text, mut section) = (String::new(), "");
    for Shown { key, value, origin } in shown {
        let (of, name) = key.split_once('.').unwrap_or(("", key));
        if of != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            text.extend([gap, "[", of, "]\n"]);
            section = of;
        }
        text.extend([name, " = ", value, "  # ", origin, "\n"]);
    }
    text
}

/// Ends a command: prints the error, if there is one, and returns the exit code.
#[expect(clippy::print_stderr, reason = "the result of a command")]
pub fn end(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            eprintln!("error: {}", chain(failure.error.as_ref()));
            failure.exit.into()
        }
    }
}
