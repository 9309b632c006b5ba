//! `projector show`.

use clap::Args;
use daemon::Failure;
use read_model::TableRows;
use serde::Serialize;

use super::{failure, models, open_mysql};
use crate::Settings;
use daemon::output::Format;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  projector show order_summary --limit 3")]
pub(crate) struct Show {
    /// The projection.
    projection: String,
    /// The most rows of each table.
    #[arg(long, default_value_t = 10)]
    limit: u32,
    #[command(flatten)]
    format: Format,
}

/// The first rows of a table.
#[derive(Serialize)]
struct Shown {
    table: String,
    #[serde(flatten)]
    rows: TableRows,
}

/// Prints the first rows of a projection's tables.
pub(crate) async fn show(settings: &Settings, arguments: &Show) -> Result<(), Failure> {
    let models = models(settings, std::slice::from_ref(&arguments.projection))?;
    let mut session = open_mysql(settings).await?;
    let mut shown = Vec::new();
    for table in models.iter().flat_map(|model| &model.projection.tables) {
        let rows = session.first_rows(&table.name, arguments.limit).await.map_err(failure)?;
        shown.push(Shown { table: table.name.clone(), rows });
    }
    session.close().await;
    let text = |Shown { table, rows }: &Shown| format!("{table}\n{rows}");
    arguments.format.print(&shown, |shown| shown.iter().map(text).collect::<Vec<_>>().join("\n"))
}
