//! `projector show`.

use clap::Args;
use daemon::Failure;

use super::{failure, models, open_mysql};
use crate::Settings;
use daemon::output::say;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  projector show order_summary --limit 3")]
pub(crate) struct Show {
    /// The projection.
    projection: String,
    /// The most rows of each table.
    #[arg(long, default_value_t = 10)]
    limit: u32,
}

/// Prints the first rows of a projection's tables.
pub(crate) async fn show(settings: &Settings, arguments: &Show) -> Result<(), Failure> {
    let models = models(settings, std::slice::from_ref(&arguments.projection))?;
    let mut session = open_mysql(settings).await?;
    for table in models.iter().flat_map(|model| &model.projection.tables) {
        let rows = session.first_rows(&table.name, arguments.limit).await.map_err(failure)?;
        say(&format!("{}\n{rows}", table.name));
    }
    session.close().await;
    Ok(())
}
