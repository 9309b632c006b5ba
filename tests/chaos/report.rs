//! What a campaign has found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::checker::{Findings, Wrong};
use crate::faults::Kind;
use crate::sights::Sight;

/// Faults of one kind.
#[derive(Default)]
pub(crate) struct Tried {
    /// How many were done.
    pub(crate) done: usize,
    /// How many could not be, because what they are done to was away.
    pub(crate) missed: usize,
    /// How long events took to flow again after each.
    pub(crate) recoveries: Vec<Duration>,
}

/// The result of a campaign.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    pub(crate) events: u64,
    pub(crate) streams: usize,
    pub(crate) rolled_back: usize,
    pub(crate) unknown: u64,
    pub(crate) relays: usize,
    pub(crate) projectors: usize,
    pub(crate) published: u64,
    pub(crate) duplicates: u64,
    pub(crate) inversions: usize,
    pub(crate) faults: BTreeMap<Kind, Tried>,
    pub(crate) sights: BTreeMap<Sight, u64>,
    pub(crate) findings: Findings,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

fn quantile(sorted: &[Duration], part: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).map_or_else(String::new, |found| format!("{:.2}", found.as_secs_f64()))
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done: usize = self.faults.values().map(|tried| tried.done).sum();
        writeln!(out, "# Chaos\n")?;
        writeln!(
            out,
            "Written by `cargo xtask chaos{}`: seed {}, {done} faults in {:.0} s, {} events of {} streams, \
             {} relays, {} projectors.\n",
            command_line(),
            self.seed,
            self.took.as_secs_f64(),
            self.events,
            self.streams,
            self.relays,
            self.projectors
        )?;
        writeln!(out, "| events | |\n|---|--:|")?;
        for (name, wrong) in [
            ("lost", Wrong::Lost),
            ("doubled", Wrong::Doubled),
            ("inverted", Wrong::Inverted),
            ("skipped", Wrong::Skipped),
            ("passed over though they cannot be applied", Wrong::PassedOver),
            ("of nobody", Wrong::Phantom),
            ("rows that differ from a fold", Wrong::Differs),
            ("marked, and never published", Wrong::Unpublished),
            ("never marked", Wrong::LeftBehind),
            ("committed, and not stored", Wrong::NotStored),
            ("rolled back, and published or stored", Wrong::RolledBack),
            ("put before an earlier one on the wire, without a reason", Wrong::InvertedOnTheWire),
        ] {
            writeln!(out, "| {name} | {} |", self.findings.count(wrong))?;
        }
        writeln!(out, "| rolled back | {} |", self.rolled_back)?;
        writeln!(out, "| committed or not, the writer does not know | {} |", self.unknown)?;
        writeln!(out, "| messages on the wire | {} |", self.published)?;
        writeln!(out, "| of these duplicates | {} |", self.duplicates)?;
        writeln!(
            out,
            "| first copies behind a later one, with a reason | {} |\n",
            self.inversions
        )?;
        writeln!(out, "| seen | times |\n|---|--:|")?;
        for sight in Sight::ALL {
            let times = self.sights.get(&sight).copied().unwrap_or(0);
            writeln!(out, "| {} | {times} |", sight.name())?;
        }
        writeln!(
            out,
            "\nRecovery: seconds from the end of a fault, others perhaps still lasting, until an event \
             appended then is in the read models.\n"
        )?;
        writeln!(out, "| fault | done | missed | p50 | p99 | max |\n|---|--:|--:|--:|--:|--:|")?;
        let mut all = Vec::new();
        for (kind, tried) in &self.faults {
            all.extend(&tried.recoveries);
            line(out, &kind.name(), tried.done, tried.missed, &tried.recoveries)?;
        }
        let missed = self.faults.values().map(|tried| tried.missed).sum();
        line(out, "all", done, missed, &all)?;
        if self.is_clean() {
            return writeln!(out, "\nNothing is wrong.");
        }
        writeln!(out, "\nWRONG:\n")?;
        for (wrong, count, examples) in self.findings.iter() {
            writeln!(out, "- {wrong:?}: {count}; {}", examples.join("; "))?;
        }
        Ok(())
    }
}

/// What the program was called with, but for the report itself.
fn command_line() -> String {
    let mut line = String::from(if cfg!(debug_assertions) { "" } else { " --release" });
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--report" {
            arguments.next();
        } else {
            line.push(' ');
            line.push_str(&argument);
        }
    }
    line
}

fn line(
    out: &mut fmt::Formatter<'_>,
    name: &str,
    done: usize,
    missed: usize,
    recoveries: &[Duration],
) -> fmt::Result {
    let mut sorted = recoveries.to_vec();
    sorted.sort();
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&sorted, part));
    writeln!(out, "| {name} | {done} | {missed} | {p50} | {p99} | {max} |")
}
