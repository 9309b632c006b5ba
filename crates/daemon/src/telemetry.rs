//! Logs.

use std::io::IsTerminal;

use anyhow::{Context, anyhow};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

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

/// Libraries that handle messages, statements and secrets, and may log them below INFO.
const HANDLE_CONTENT: [&str; 8] =
    ["amq_protocol", "async_rs", "executor_trait", "hyper", "lapin", "mio", "rustls", "sqlx"];

/// Whether an event is not about the content of messages, statements or connections.
fn shows_no_content(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    *metadata.level() <= Level::INFO || !HANDLE_CONTENT.iter().any(|it| target.starts_with(it))
}

/// Starts logging to standard output. No filter makes a library log the content of messages.
///
/// # Errors
///
/// When the filter is not valid.
pub fn init_logs(settings: &LogSettings) -> Result<(), Failure> {
    let filter = settings.filter().context(INVALID_FILTER);
    let filter = filter.map_err(|error| Failure::new(Exit::Configuration, error))?;
    let terminal = std::io::stdout().is_terminal();
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let layer = if json {
        fmt::layer().json().flatten_event(true).with_span_list(false).boxed()
    } else {
        fmt::layer().with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).boxed()
    };
    let layer = layer.with_filter(filter.and(filter_fn(shows_no_content)));
    let started = registry().with(layer).try_init();
    started.map_err(|error| anyhow!(error).context("starting the logs").into())
}
