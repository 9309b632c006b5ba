//! Reports the progress of a rebuild, and slows it down to its limits.

use std::collections::HashMap;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use domain_events::{EventType, Position, StoredEvent};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use projection::Lookup;
use read_model::{Progress, ReadModel, RebuildOptions, Session};
use tokio::time::sleep;

use super::Error;
use crate::history::{Lag, PAGE, Pace, Span, lag};
use crate::metrics::Metrics;
use daemon::output::say;

/// How often progress is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The place to which a rebuild reports.
#[derive(Clone)]
pub(crate) enum Report {
    /// A person at a terminal.
    Terminal(ProgressBar),
    /// The output of a command that is not a terminal.
    Lines,
    /// None: the command prints JSON.
    Quiet,
    /// The log and the metrics of a projector.
    Log {
        /// The projection.
        projection: String,
        /// The metrics of the projector.
        metrics: Box<Metrics>,
    },
}

impl Report {
    /// The report of a command: a progress bar on a terminal, otherwise lines.
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

    /// Reports a step.
    pub(crate) fn say(&self, text: &str) {
        match self {
            Self::Terminal(bar) => bar.println(text),
            Self::Lines => say(text),
            Self::Quiet => {}
            Self::Log { projection, .. } => tracing::info!(projection, "rebuild: {text}"),
        }
    }

    /// Reports how far the history is applied. Called once a second.
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

/// The progress in words.
pub(crate) fn text(progress: &Progress) -> String {
    let Progress { position, until, events_per_second, seconds_left, .. } = progress;
    let left = seconds_left.map_or_else(String::new, |seconds| {
        format!(", about {} left", humantime::format_duration(Duration::from_secs(seconds)))
    });
    format!(
        "position {position} of {until}, {} positions left, {events_per_second} events/s{left}",
        until - position
    )
}

/// Accompanies the replay of a rebuild or a comparison.
pub(crate) struct RebuildPace<'p> {
    report: &'p Report,
    options: RebuildOptions,
    store: &'p event_store::Options,
    /// Measures the lag; connects on first use.
    store_session: Option<event_store::Session>,
    /// Holds the lock of the rebuild. MySQL ends idle sessions, so [`Pace::keep_alive`] and each report use this one.
    owner: &'p mut Session,
    /// The live tables, in whose bookkeeping the progress of a rebuild is recorded.
    live: Option<&'p ReadModel>,
    begun: Instant,
    reported: Option<Instant>,
    last: Progress,
    /// When the throttle allows the next page.
    next: Instant,
    /// The number of events so far.
    pub(super) events: u64,
    /// The number of events of each type that has no handler.
    pub(super) unhandled: HashMap<EventType, u64>,
}

impl<'p> RebuildPace<'p> {
    /// For tables that are dropped afterwards.
    pub(super) fn of_comparison(
        report: &'p Report,
        store: &'p event_store::Options,
        owner: &'p mut Session,
    ) -> Self {
        Self {
            report,
            options: RebuildOptions::default(),
            store,
            store_session: None,
            owner,
            live: None,
            begun: Instant::now(),
            reported: None,
            last: Progress::default(),
            next: Instant::now(),
            events: 0,
            unhandled: HashMap::new(),
        }
    }

    /// For a rebuild.
    pub(super) fn of_rebuild(
        report: &'p Report,
        store: &'p event_store::Options,
        owner: &'p mut Session,
        options: RebuildOptions,
        live: &'p ReadModel,
    ) -> Self {
        Self { options, live: Some(live), ..Self::of_comparison(report, store, owner) }
    }

    /// Reports that the rebuild waits for open transactions.
    pub(super) async fn held_up(&mut self, by: &str, at: Position) -> Result<(), Error> {
        self.report.say(&format!("waiting: {by}"));
        self.last = self.measure(Span { from: at, at, until: at });
        self.record().await
    }

    /// Measures the progress. The time left is an estimate: events of other categories also use up positions.
    fn measure(&self, Span { from, at, until }: Span) -> Progress {
        let elapsed = self.begun.elapsed();
        let done = u128::from((at.get() - from.get()).unsigned_abs());
        let left = u128::from((until.get() - at.get()).unsigned_abs());
        let seconds_left = (left * elapsed.as_millis()).checked_div(done * 1_000);
        let rate = u128::from(self.events) * 1_000 / elapsed.as_millis().max(1);
        Progress {
            position: at.get(),
            until: until.get(),
            events: self.events,
            events_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            seconds_left: seconds_left.and_then(|seconds| u64::try_from(seconds).ok()),
        }
    }

    /// Records the progress. Fails if the rebuild was cancelled.
    async fn record(&mut self) -> Result<(), Error> {
        let Some(live) = self.live else { return Ok(self.owner.ping().await?) };
        if self.owner.note_progress(&live.ledger, &self.last).await? {
            Ok(())
        } else {
            Err(Error::Cancelled { projection: live.name().to_owned() })
        }
    }

    async fn throttle(&mut self, events: usize) {
        if self.options.throttle > 0 {
            let events = u32::try_from(events).unwrap_or(u32::MAX);
            let due = Duration::from_secs(1) * events / self.options.throttle;
            // After a wait, the throttle does not catch up on unused time.
            self.next = Instant::now().max(self.next + due);
            sleep(self.next.saturating_duration_since(Instant::now())).await;
        }
    }

    /// Waits while the lag of the live read model exceeds `--max-lag`.
    async fn wait_for_live(&mut self) -> Result<(), Error> {
        let limit = f64::from(self.options.max_lag);
        let Some(live) = self.live.filter(|_| limit > 0.0) else { return Ok(()) };
        let mut store = match self.store_session.take() {
            Some(store) => store,
            None => event_store::Session::connect(self.store).await?,
        };
        let mut reported = false;
        loop {
            let Lag { events, seconds, .. } = lag(self.owner, &mut store, live).await?;
            if seconds <= limit {
                self.store_session = Some(store);
                return Ok(());
            }
            if !reported {
                self.report.say(&format!(
                    "waiting: {} lags by {events} events, {seconds:.0} s, more than --max-lag",
                    live.name()
                ));
                reported = true;
            }
            // This notices a cancelled rebuild.
            self.record().await?;
            sleep(REPORT_INTERVAL).await;
        }
    }
}

impl Pace for RebuildPace<'_> {
    type Error = Error;

    /// With a throttle, a quarter of a second's events: small pages keep the rate even.
    fn page(&self) -> u32 {
        match self.options.throttle {
            0 => PAGE,
            throttle => (throttle / 4).clamp(1, PAGE),
        }
    }

    async fn keep_alive(&mut self) -> Result<(), Error> {
        Ok(self.owner.ping().await?)
    }

    async fn passed(
        &mut self,
        model: &ReadModel,
        page: &[StoredEvent],
        span: Span,
    ) -> Result<(), Error> {
        self.events += page.len() as u64;
        for event in page {
            let lookup = model.projection.lookup(&event.event_type, event.schema_version);
            if !model.projection.is_rust && matches!(lookup, Lookup::Unhandled) {
                *self.unhandled.entry(event.event_type.clone()).or_default() += 1;
            }
        }
        let is_due = self.reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        if is_due || span.at == span.until {
            self.reported = Some(Instant::now());
            self.last = self.measure(span);
            self.report.progress(&self.last);
            self.record().await?;
        }
        self.throttle(page.len()).await;
        self.wait_for_live().await
    }
}
