//! `projector check`.

use std::path::PathBuf;

use clap::Args;
use daemon::Failure;

use super::say;
use crate::Settings;
use crate::mysql;
use crate::projection::load_all;
use crate::run::{mysql_options, told};
use crate::trouble::Trouble;

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The folder with the projections; otherwise the configured one.
    folder: Option<PathBuf>,
    /// Only what needs no server. Otherwise the tables are made, and the statements prepared, in a
    /// scratch database that is dropped again.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Looks for mistakes, and says which handlers run for many events at once.
pub(crate) async fn check(settings: &Settings, arguments: &Check) -> Result<(), Failure> {
    let folder = arguments.folder.as_ref().unwrap_or(&settings.projections_dir);
    let projections = load_all(folder, &[], &settings.code).map_err(|faults| told(&faults))?;
    if !arguments.offline {
        let found =
            mysql::check(&mysql_options(settings)?, &projections).await.map_err(Trouble::from)?;
        if !found.faults.is_empty() {
            return Err(told(&found.faults));
        }
        for (projection, forms) in projections.iter().zip(&found.forms) {
            say(&format!("{}: {}", projection.name, forms.passage_text()));
            for (name, handler) in projection.handlers() {
                let how = match forms.of(handler) {
                    Ok(_) => "many events at once".to_owned(),
                    Err(reason) => format!("event by event: {reason}"),
                };
                say(&format!("  {name}: {how}"));
            }
        }
    }
    say(&format!("{} projections: ok", projections.len()));
    Ok(())
}
