//! `projector verify`.

use clap::Args;
use daemon::{Failure, chain};

use super::rebuild::rebuilder;
use crate::Settings;
use crate::rebuild::Findings;
use daemon::output::{Format, counted};

/// How often to begin, if MySQL undoes the work for the sake of other sessions.
const ATTEMPTS: u32 = 5;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  projector verify order_summary\n  projector verify order_summary \
                        --repair"
)]
pub(crate) struct Verify {
    /// The projection.
    projection: String,
    /// Overwrite rows that differ.
    #[arg(long)]
    repair: bool,
    /// Compare only this many streams, chosen at random. Each row must belong to one stream.
    #[arg(long, value_name = "STREAMS")]
    sample: Option<u32>,
    #[command(flatten)]
    format: Format,
}

/// Compares a read model with the event store. Returns whether it is right now.
pub(crate) async fn verify(settings: &Settings, arguments: &Verify) -> Result<bool, Failure> {
    let Verify { projection, repair, sample, format } = arguments;
    let rebuilder = rebuilder(settings, projection, *format).await?;
    let mut attempt = 1;
    let found = loop {
        match rebuilder.verify(*sample, *repair).await {
            Err(error) if attempt < ATTEMPTS && error.is_undone() => {
                rebuilder.report.say(&format!("the comparison begins again: {}", chain(&error)));
                attempt += 1;
            }
            verified => break verified?,
        }
    };
    format.print(&found, |found| text(projection, found, *repair))?;
    Ok(found.streams.is_empty() && (found.is_empty() || *repair))
}

fn text(projection: &str, found: &Findings, repaired: bool) -> String {
    let Findings { scope, drift, streams } = found;
    let mut lines: Vec<String> = drift.iter().map(ToString::to_string).collect();
    lines.push(scope.to_string());
    let rows = counted(drift.len(), "row differs", "rows differ");
    lines.push(match (drift.len(), repaired) {
        (0, _) => "every compared row agrees with the event store".to_owned(),
        (_, true) => format!("{rows} from the event store; repaired"),
        (_, false) => format!(
            "{rows} from the event store: `projector verify {projection} --repair` overwrites them"
        ),
    });
    lines.extend(streams.iter().map(ToString::to_string));
    if !streams.is_empty() {
        lines.push(format!(
            "the bookkeeping of {} contradicts the event store: run `projector rebuild start {projection}`",
            counted(streams.len(), "stream", "streams")
        ));
    }
    lines.join("\n")
}
