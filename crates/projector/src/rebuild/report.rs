//! How a rebuild tells how far it is.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::commands::say;
use crate::metrics::Metrics;
use crate::mysql::Progress;

/// Who is told.
pub(crate) enum Report {
    /// A person at a terminal.
    Terminal(ProgressBar),
    /// Whoever reads the output of a command.
    Lines,
    /// Nobody: the command prints something else, for a program.
    Quiet,
    /// The log and the metrics of a projector.
    Log {
        /// Of which projection.
        projection: String,
        /// Where it is counted.
        metrics: Box<Metrics>,
    },
}

impl Report {
    /// For a command.
    pub(crate) fn of_command() -> Self {
        if !stdout().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stdout());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% {msg}") {
            bar.set_style(style);
        }
        Self::Terminal(bar)
    }

    /// Tells what happens.
    pub(crate) fn say(&self, text: &str) {
        match self {
            Self::Terminal(bar) => bar.println(text),
            Self::Lines => say(text),
            Self::Quiet => {}
            Self::Log { projection, .. } => tracing::info!(projection, "rebuild: {text}"),
        }
    }

    /// Tells how far the history is applied; called once a second.
    pub(crate) fn progress(&self, progress: &Progress) {
        match self {
            Self::Terminal(bar) => {
                bar.set_length(progress.until.unsigned_abs());
                bar.set_position(progress.position.unsigned_abs());
                bar.set_message(text(progress));
            }
            Self::Lines => say(&text(progress)),
            Self::Quiet => {}
            Self::Log { projection, metrics } => {
                metrics.rebuild(projection, Some(progress));
                tracing::debug!(projection, "rebuild: {}", text(progress));
            }
        }
    }
}

/// In words.
pub(crate) fn text(progress: &Progress) -> String {
    let Progress { position, until, events_per_second, seconds_left, .. } = progress;
    let left = seconds_left.map_or_else(String::new, |seconds| {
        format!(", {} left", humantime::format_duration(Duration::from_secs(seconds)))
    });
    format!(
        "position {position} of {until}, {} behind, {events_per_second} events/s{left}",
        until - position
    )
}
