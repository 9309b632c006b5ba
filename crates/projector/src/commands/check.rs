//! `projector check`.

use std::path::PathBuf;

use clap::Args;
use daemon::Failure;

use super::failure;
use crate::Settings;
use crate::settings::mistakes;
use daemon::output::say;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  projector check config/projections --offline")]
pub(crate) struct Check {
    /// The folder with the projections. Default: the configured one.
    folder: Option<PathBuf>,
    /// Run only the checks that need no server. Without this option, MySQL creates the tables and prepares the
    /// statements in a scratch database, which is dropped afterwards.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Reports mistakes, and which handlers run for many events at once.
pub(crate) async fn check(settings: &Settings, arguments: &Check) -> Result<(), Failure> {
    let folder = arguments.folder.as_ref().unwrap_or(&settings.projections_dir);
    let definitions =
        read_model::load(folder, &[], &settings.code).map_err(|faults| mistakes(&faults))?;
    if !arguments.offline {
        let projections = definitions.iter().map(|definition| &definition.projection);
        let projections: Vec<_> = projections.collect();
        let found = read_model::check(&settings.mysql()?, &projections).await.map_err(failure)?;
        if !found.faults.is_empty() {
            return Err(mistakes(&found.faults));
        }
        for warning in &found.warnings {
            say(&format!("warning: {warning}"));
        }
        for (projection, forms) in projections.into_iter().zip(&found.forms) {
            say(&format!("{}: {}", projection.name, forms.lock_mode_text()));
            for (name, handler) in projection.handlers() {
                let how = match forms.one_by_one(handler) {
                    None => "many events at once".to_owned(),
                    Some(reason) => format!("event by event: {reason}"),
                };
                say(&format!("  {name}: {how}"));
            }
        }
    }
    say(&format!("{} projections: ok", definitions.len()));
    Ok(())
}
