//! Logs.

use std::io::IsTerminal;

use anyhow::{Context, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::settings::Reader;
use crate::{Exit, Failure};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings of the log.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// The format of a line.
    pub format: LogFormat,
    /// What to log: directives as in `RUST_LOG`.
    pub filter: String,
}

impl LogSettings {
    /// Reads the section `log`.
    pub fn read(reader: &mut Reader) -> Self {
        let formats =
            [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
        let read = Self {
            format: reader.choice("log.format", &formats),
            filter: reader.text("log.filter"),
        };
        reader.require(&["log.filter"], read.filter().is_ok(), INVALID_FILTER);
        read
    }

    fn filter(&self) -> Result<EnvFilter, ParseError> {
        EnvFilter::builder().parse(format!("{BEFORE},{},{AFTER}", self.filter))
    }
}

const INVALID_FILTER: &str =
    "log.filter is not valid: expected directives such as info,projector=debug";
/// Placed before the configured directives. lapin logs every closed channel as an error; the ones that
/// matter are reported where they are handled.
const BEFORE: &str = "lapin=off";
/// Placed after the configured directives, so that none overrides it: lapin would log each returned
/// message with its payload.
const AFTER: &str = "lapin::returned_messages=off";

/// Starts logging to standard output.
///
/// # Errors
///
/// When the filter is not valid.
pub fn init_logs(settings: &LogSettings) -> Result<(), Failure> {
    let filter = settings.filter().context(INVALID_FILTER);
    let filter = filter.map_err(|error| Failure::new(Exit::Configuration, error))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let terminal = std::io::stdout().is_terminal();
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let started = if json {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).try_init()
    };
    started.map_err(|error| anyhow!(error).context("starting the logs").into())
}
