//! `projector verify`.

use clap::Args;
use daemon::{Failure, chain};

use super::rebuild::rebuilder;
use crate::Settings;
use daemon::output::Format;

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
    format.print(&found, |found| {
        let mut lines: Vec<String> = found.drift.iter().map(ToString::to_string).collect();
        lines.push(match (found.drift.len(), repair) {
            (0, _) => format!("every compared row of {projection} agrees with the event store"),
            (rows, true) => format!("{rows} rows were wrong and have been repaired"),
            (rows, false) => format!("{rows} rows are wrong; --repair overwrites them"),
        });
        lines.extend(found.streams.iter().map(ToString::to_string));
        if !found.streams.is_empty() {
            let count = found.streams.len();
            lines.push(format!(
                "the bookkeeping of {count} streams contradicts the event store; run `projector rebuild start \
                 {projection}`"
            ));
        }
        lines.join("\n")
    })?;
    Ok(found.streams.is_empty() && (found.is_empty() || *repair))
}
