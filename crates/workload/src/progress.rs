//! The display of progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::interval;

/// The form of the display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// A bar; only on a terminal.
    Bar,
    /// Lines of JSON on standard output, for a program.
    Json,
}

/// The progress of a command.
pub(crate) struct Progress {
    pub(crate) show: Show,
    /// The length of the bar.
    pub(crate) length: u64,
    /// The filled part of the bar.
    pub(crate) place: Arc<AtomicU64>,
    pub(crate) appended: Arc<AtomicU64>,
}

impl Progress {
    /// Shows progress until `work` ends.
    pub(crate) async fn during<T>(self, work: impl Future<Output = T>) -> T {
        let bar = match self.show {
            Show::Bar => ProgressBar::new(self.length).with_style(style()),
            Show::Json => ProgressBar::hidden(),
        };
        let mut ticks = interval(Duration::from_millis(200));
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = ticks.tick() => self.tick(&bar),
            }
        };
        self.tick(&bar);
        bar.finish_and_clear();
        result
    }

    #[expect(clippy::print_stdout, reason = "the result of --json")]
    fn tick(&self, bar: &ProgressBar) {
        let appended = self.appended.load(Ordering::Relaxed);
        if self.show == Show::Json {
            println!("{{\"appended\":{appended}}}");
        }
        bar.set_position(self.place.load(Ordering::Relaxed).min(self.length));
        bar.set_message(format!("{appended} events"));
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}  {elapsed} (eta {eta})")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
