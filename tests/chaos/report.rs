//! The report of a campaign.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::coverage::Goal;
use crate::faults::Kind;
use crate::findings::{Findings, Wrong};

/// Faults of one kind.
#[derive(Default)]
pub(crate) struct Tried {
    /// How many were injected.
    pub(crate) done: usize,
    /// How many could not be injected, because their target was down.
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
    pub(crate) coverage: BTreeMap<Goal, u64>,
    pub(crate) findings: Findings,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// How long events took to flow again, by kind of fault.
    fn fmt_recovery(&self, out: &mut fmt::Formatter<'_>, done: usize) -> fmt::Result {
        writeln!(
            out,
            "\nRecovery is the time in seconds from the end of a fault until all read models show events that \
             were appended at that moment. Other faults may still last. A fault is missed if its target was down \
             or did not react.\n"
        )?;
        writeln!(out, "| fault | done | missed | p50 | p99 | max |\n|---|--:|--:|--:|--:|--:|")?;
        let mut all = Vec::new();
        for (kind, tried) in &self.faults {
            all.extend(&tried.recoveries);
            line(out, &kind.name(), tried.done, tried.missed, &tried.recoveries)?;
        }
        let missed = self.faults.values().map(|tried| tried.missed).sum();
        line(out, "all", done, missed, &all)
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
        writeln!(out, "# Fault injection\n")?;
        writeln!(
            out,
            "Written by `cargo xtask chaos{}`: seed {}, {done} faults in {:.0} s, {} events in {} streams, \
             {} relays, {} projectors.\n\n\
             The campaign injects faults while events flow, and then compares every event and every row with \
             the event store. Every error must be 0.\n",
            command_line(),
            self.seed,
            self.took.as_secs_f64(),
            self.events,
            self.streams,
            self.relays,
            self.projectors
        )?;
        writeln!(out, "| error | count |\n|---|--:|")?;
        for (name, wrong) in [
            ("lost", Wrong::Lost),
            ("doubled", Wrong::Doubled),
            ("inverted", Wrong::Inverted),
            ("skipped", Wrong::Skipped),
            ("not parked although they cannot be applied", Wrong::PassedOver),
            ("applied but not in the event store", Wrong::Phantom),
            ("rows that differ from a sequential fold", Wrong::Differs),
            ("marked as published but never on the wire", Wrong::Unpublished),
            ("never marked as published", Wrong::LeftBehind),
            ("committed but not in the event store", Wrong::NotStored),
            ("rolled back but published or stored", Wrong::RolledBack),
            ("out of order on the wire without a reason", Wrong::InvertedOnTheWire),
        ] {
            writeln!(out, "| {name} | {} |", self.findings.count(wrong))?;
        }
        writeln!(out, "\n| workload | count |\n|---|--:|")?;
        writeln!(out, "| events rolled back | {} |", self.rolled_back)?;
        writeln!(out, "| events with an unknown commit outcome | {} |", self.unknown)?;
        writeln!(out, "| messages on the wire | {} |", self.published)?;
        writeln!(out, "| duplicates among them | {} |", self.duplicates)?;
        writeln!(
            out,
            "| first copies out of order, with or without a reason | {} |\n",
            self.inversions
        )?;
        writeln!(out, "| coverage | times |\n|---|--:|")?;
        for goal in Goal::ALL {
            let times = self.coverage.get(&goal).copied().unwrap_or(0);
            writeln!(out, "| {} | {times} |", goal.name())?;
        }
        self.fmt_recovery(out, done)?;
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

/// The arguments of the program without `--report`.
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
