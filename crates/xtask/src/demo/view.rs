//! The live view, from the daemons' metrics.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;

use super::Daemon;

/// The daemons' counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts {
    published: u64,
    applied: BTreeMap<String, u64>,
    /// Seconds, by projection.
    lag: BTreeMap<String, f64>,
}

impl Counts {
    pub(super) fn read(daemons: &[Daemon]) -> Result<Self> {
        let mut counts = Self::default();
        for daemon in daemons {
            for line in daemon.get("/metrics")?.lines() {
                counts.add(line);
            }
        }
        Ok(counts)
    }

    /// Reads a line such as `projector_events_total{projection="x",outcome="applied"} 7`.
    fn add(&mut self, line: &str) {
        let Some((series, value)) = line.rsplit_once(' ') else { return };
        let projection = || {
            let (_, rest) = series.split_once("projection=\"")?;
            Some(rest.split('"').next()?.to_owned())
        };
        if series == "outbox_relay_messages_published_total{outcome=\"confirmed\"}" {
            self.published = value.parse().unwrap_or(0);
        } else if series.starts_with("projector_events_total{") && series.contains("\"applied\"") {
            self.applied.extend(projection().zip(value.parse().ok()));
        } else if series.starts_with("projector_lag_seconds{") {
            self.lag.extend(projection().zip(value.parse().ok()));
        }
    }
}

/// Figures that change in place on a terminal, and that are printed line by line elsewhere.
pub(super) struct View {
    before: Counts,
    started: Instant,
    last: Option<(Instant, u64, u64)>,
    drawn: usize,
    last_line: Option<Instant>,
}

impl View {
    /// Counts from now on.
    pub(super) fn new(before: Counts) -> Self {
        Self { before, started: Instant::now(), last: None, drawn: 0, last_line: None }
    }

    /// Shows the figures. `true` if every event was published and applied.
    pub(super) fn show(&mut self, appended: u64, now: &Counts) -> bool {
        let (published, applied) = self.since(now);
        let (append_rate, publish_rate) = self.rates(appended, published);
        let seconds = self.started.elapsed().as_secs();
        if std::io::stdout().is_terminal() {
            let mut lines = vec![
                format!("{seconds:>4} s   appended    {appended:>9}   {append_rate:>6.0}/s"),
                format!("         published   {published:>9}   {publish_rate:>6.0}/s"),
            ];
            for (name, count) in &applied {
                let open = appended.saturating_sub(*count);
                let lag = now.lag.get(*name).copied().unwrap_or(0.0);
                lines.push(format!(
                    "         applied     {count:>9}   {name}: {open} not yet applied, lag {lag:.1} s"
                ));
            }
            self.redraw(&lines);
        } else if self.last_line.is_none_or(|last| last.elapsed().as_secs() >= 2) {
            self.last_line = Some(Instant::now());
            let applied: Vec<_> =
                applied.iter().map(|(name, count)| format!("{name} {count}")).collect();
            println!(
                "{seconds:>4} s  appended {appended} ({append_rate:.0}/s)  published {published} \
                 ({publish_rate:.0}/s)  applied {}",
                applied.join(", ")
            );
        }
        let caught_up =
            published == appended && applied.iter().all(|(_, count)| *count == appended);
        caught_up && !applied.is_empty()
    }

    /// The final figures.
    pub(super) fn summary(&self, now: &Counts) {
        let (published, applied) = self.since(now);
        let applied: Vec<_> =
            applied.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!(
            "\nappended {}, published {published}, applied: {}\n",
            self.last.map_or(0, |(_, appended, _)| appended),
            applied.join(", ")
        );
    }

    /// The events published and applied since the view began.
    fn since<'n>(&self, now: &'n Counts) -> (u64, Vec<(&'n str, u64)>) {
        let since = |(name, count): (&'n String, &u64)| {
            let before = self.before.applied.get(name).copied().unwrap_or(0);
            (name.as_str(), count.saturating_sub(before))
        };
        let published = now.published.saturating_sub(self.before.published);
        (published, now.applied.iter().map(since).collect())
    }

    /// Events per second since the previous call.
    fn rates(&mut self, appended: u64, published: u64) -> (f64, f64) {
        let now = Instant::now();
        let Some((then, appended_then, published_then)) =
            self.last.replace((now, appended, published))
        else {
            return (0.0, 0.0);
        };
        let seconds = (now - then).as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (rate(appended, appended_then), rate(published, published_then))
    }

    fn redraw(&mut self, lines: &[String]) {
        let mut out = std::io::stdout().lock();
        let up = if self.drawn == 0 { String::new() } else { format!("\x1b[{}A", self.drawn) };
        let text = lines.join("\x1b[K\n");
        // The demo goes on even if the view cannot be drawn.
        drop(writeln!(out, "{up}\r{text}\x1b[K"));
        drop(out.flush());
        self.drawn = lines.len();
    }
}
