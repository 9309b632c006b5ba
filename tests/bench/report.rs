//! The report of the measurements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use serde::Serialize;

use crate::process::Cost;

/// All results.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    tables: Vec<Table>,
}

/// Measurements that belong together.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    title: &'static str,
    note: &'static str,
    rows: Vec<Row>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    /// The value of each run.
    values: Vec<f64>,
    median: f64,
    /// The measurement that it is compared with, and the ratio of the medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<(String, f64)>,
}

/// Several runs of one of the daemons.
#[derive(Default)]
pub(crate) struct Runs {
    /// Events per run.
    events: u32,
    rates: Vec<f64>,
    costs: Vec<Cost>,
    /// The CPU seconds of each server in each run.
    servers: Vec<BTreeMap<String, f64>>,
}

impl Runs {
    /// Runs of this many events each.
    pub(crate) fn of(events: u32) -> Self {
        Self { events, ..Self::default() }
    }

    /// Adds a run: its rate in events per second, its cost, and the CPU seconds of each server.
    pub(crate) fn push(&mut self, rate: f64, cost: Cost, servers: BTreeMap<String, f64>) {
        self.rates.push(rate);
        self.costs.push(cost);
        self.servers.push(servers);
    }
}

impl Report {
    /// Begins a table.
    pub(crate) fn table(&mut self, title: &'static str, note: &'static str) -> &mut Table {
        println!("\n== {title}");
        self.tables.push(Table { title, note, rows: Vec::new() });
        let last = self.tables.len() - 1;
        &mut self.tables[last]
    }

    /// The tables as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for Table { title, note, rows } in &self.tables {
            writeln!(text, "## {title}\n\n{note}\n").expect("a String");
            text.push_str(
                "| measurement | median | lowest to highest | unit | ratio |\n|---|--:|--:|---|---|\n",
            );
            for Row { what, unit, values, median, ratio } in rows {
                let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
                let highest = values.iter().copied().fold(0.0, f64::max);
                let ratio = ratio
                    .as_ref()
                    .map_or_else(String::new, |(of, ratio)| format!("{ratio:.2} of {of}"));
                writeln!(
                    text,
                    "| {what} | {} | {} to {} | {unit} | {ratio} |",
                    number(*median),
                    number(lowest),
                    number(highest)
                )
                .expect("a String");
            }
            text.push('\n');
        }
        text
    }

    /// The tables, with the machine and the method.
    pub(crate) fn document(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory: u64 = memory
            .split_whitespace()
            .nth(1)
            .and_then(|kibibytes| kibibytes.parse().ok())
            .unwrap_or_default();
        format!(
            "# Benchmarks\n\n\
             Written by `cargo xtask bench --markdown BENCHMARKS.md` on a machine with {cores} cores and {} GiB \
             of memory. The daemons, the servers and the load shared the machine. The daemons were release \
             builds; the servers flushed to disk.\n\n\
             Each table compares a daemon with bare programs that only do the unavoidable work on the same \
             servers. Daemon and bare program took turns. Only the ratios within one table count, because \
             machines differ. 1 µs of CPU per event is 0.01 s for 10,000 events.\n\n{}",
            memory.div_ceil(1 << 20),
            self.markdown()
        )
    }
}

impl Table {
    /// Adds a measurement.
    pub(crate) fn row(&mut self, what: impl Into<String>, unit: &'static str, values: Vec<f64>) {
        let row = Row { what: what.into(), unit, median: median(&values), values, ratio: None };
        println!("{:44} {:>12} {unit}", row.what, number(row.median));
        self.rows.push(row);
    }

    /// Adds the runs of a daemon, compared with the measurement named `limit`.
    pub(crate) fn runs(&mut self, what: &str, runs: Runs, limit: &str) {
        let Runs { events, rates, costs, servers } = runs;
        let each = |seconds: f64| seconds * 1e6 / f64::from(events);
        self.row_of(what, "events/s", rates, limit);
        let own = costs.iter().map(|cost| each(cost.seconds)).collect();
        self.row(format!("{what}, own CPU"), "µs/event", own);
        let names: BTreeSet<&String> = servers.iter().flat_map(BTreeMap::keys).collect();
        for name in names {
            let spent = servers.iter().filter_map(|spent| spent.get(name));
            let spent: Vec<f64> = spent.map(|seconds| each(*seconds)).collect();
            if spent.iter().any(|spent| *spent >= 0.1) {
                self.row(format!("{what}, CPU of {name}"), "µs/event", spent);
            }
        }
        let memory = costs.iter().map(|cost| cost.mebibytes).collect();
        self.row(format!("{what}, peak memory"), "MiB", memory);
    }

    /// Adds a measurement, compared with the measurement named `limit`.
    pub(crate) fn row_of(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        values: Vec<f64>,
        limit: &str,
    ) {
        self.row(what, unit, values);
        let known = self.rows.iter().find(|row| row.what == limit).map(|row| row.median);
        if let (Some(limit_median), Some(row)) = (known, self.rows.last_mut()) {
            let ratio = row.median / limit_median;
            println!("{:44} {ratio:>12.2} of {limit}", "");
            row.ratio = Some((limit.to_owned(), ratio));
        }
    }
}

/// The median of some values.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which the given part of all values lies.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let mut index = 0;
    // The smallest index that is not below the part, without a cast.
    while index < last && (fraction(index, last)) < part {
        index += 1;
    }
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn fraction(index: usize, of: usize) -> f64 {
    let exact = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    exact(index) / exact(of)
}

fn number(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
