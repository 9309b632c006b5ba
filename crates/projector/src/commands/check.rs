//! `projector check`.

use std::path::PathBuf;

use clap::Args;
use daemon::Failure;
use projection::{Fault, Projection};
use read_model::Forms;
use serde::Serialize;

use super::failure;
use crate::Settings;
use crate::settings::mistakes;
use daemon::output::{Format, counted};

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  projector check config/projections --offline")]
pub(crate) struct Check {
    /// The folder with the projections. Default: the configured one.
    folder: Option<PathBuf>,
    /// Run only the checks that need no server. Without this option, MySQL creates the tables and prepares the
    /// statements in a scratch database, which is dropped afterwards.
    #[arg(long)]
    pub(crate) offline: bool,
    #[command(flatten)]
    format: Format,
}

/// What the check found.
#[derive(Default, Serialize)]
struct Report {
    projections: Vec<Checked>,
    warnings: Vec<Place>,
    mistakes: Vec<Place>,
}

/// A projection. The handlers are known only after a check with MySQL.
#[derive(Serialize)]
struct Checked {
    projection: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<String>,
    handlers: Vec<CheckedHandler>,
}

#[derive(Serialize)]
struct CheckedHandler {
    handler: String,
    batchable: bool,
    /// Why it runs event by event.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A warning or a mistake.
#[derive(Serialize)]
struct Place {
    file: String,
    line: Option<u64>,
    reason: String,
}

impl From<&Fault> for Place {
    fn from(Fault { file, line, reason }: &Fault) -> Self {
        Self { file: file.display().to_string(), line: *line, reason: reason.clone() }
    }
}

/// Reports mistakes, and which handlers run for many events at once.
pub(crate) async fn check(settings: &Settings, arguments: &Check) -> Result<(), Failure> {
    let folder = arguments.folder.as_ref().unwrap_or(&settings.projections_dir);
    let mut report = Report::default();
    let faults = match read_model::load(folder, &[], &settings.code) {
        Err(faults) => faults,
        Ok(definitions) => {
            let projections = definitions.iter().map(|definition| &definition.projection);
            let projections: Vec<&Projection> = projections.collect();
            if arguments.offline {
                report.projections = projections.into_iter().map(Checked::offline).collect();
                Vec::new()
            } else {
                let found = read_model::check(&settings.mysql()?, &projections).await;
                let found = found.map_err(failure)?;
                report.warnings = found.warnings.iter().map(Place::from).collect();
                let forms = projections.into_iter().zip(&found.forms);
                report.projections = forms.map(|(it, forms)| Checked::of(it, forms)).collect();
                found.faults
            }
        }
    };
    report.mistakes = faults.iter().map(Place::from).collect();
    if arguments.format.json || faults.is_empty() {
        arguments.format.print(&report, text)?;
    }
    if faults.is_empty() { Ok(()) } else { Err(mistakes(&faults)) }
}

impl Checked {
    fn offline(projection: &Projection) -> Self {
        Self { projection: projection.name.clone(), how: None, handlers: Vec::new() }
    }

    fn of(projection: &Projection, forms: &Forms) -> Self {
        let handler = |(name, handler): (_, _)| {
            let reason = forms.one_by_one(handler).map(str::to_owned);
            let batchable = reason.is_none();
            CheckedHandler { handler: name, batchable, reason }
        };
        Self {
            projection: projection.name.clone(),
            how: Some(forms.lock_mode_text()),
            handlers: projection.handlers().map(handler).collect(),
        }
    }
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for Place { file, line, reason } in &report.warnings {
        let line = line.map_or_else(String::new, |line| format!(":{line}"));
        lines.push(format!("warning: {file}{line}: {reason}"));
    }
    for Checked { projection, how, handlers } in &report.projections {
        lines.extend(how.iter().map(|how| format!("{projection}: {how}")));
        for CheckedHandler { handler, reason, .. } in handlers {
            let how = match reason {
                None => "many events at once".to_owned(),
                Some(reason) => format!("event by event: {reason}"),
            };
            lines.push(format!("  {handler}: {how}"));
        }
    }
    let count = counted(report.projections.len(), "projection", "projections");
    lines.push(format!("{count}: ok"));
    lines.join("\n")
}
