//! Commands for operators.

mod audit;
mod check;
mod parked;
mod rebuild;
mod status;
mod topology;

use std::env;

use clap::Args;
use daemon::{Exit, Failure};
use serde::Serialize;

use crate::Settings;
use crate::apply::ReadModel;
use crate::mysql::{self, Session};
use crate::projection::load_all;
use crate::run::{mysql_options, store_options, told};
use crate::trouble::Trouble;

pub(crate) use audit::{Audit, audit};
pub(crate) use check::{Check, check};
pub(crate) use parked::{Parked, pause, resume};
pub(crate) use rebuild::{Rebuild, Verify, drop_old, rebuild, roll_back, verify};
pub(crate) use status::status;
pub(crate) use topology::Topology;

/// How to print.
#[derive(Args, Debug, Clone, Copy, Default)]
pub(crate) struct Format {
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

impl Format {
    /// Prints a result as JSON if that was asked for, and otherwise as text.
    fn print<T: Serialize>(
        self,
        result: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let output = if self.json {
            serde_json::to_string_pretty(result)
                .map_err(|error| Failure::new(Exit::Failed, error))?
        } else {
            text(result)
        };
        say(output.trim_end());
        Ok(())
    }
}

/// The projections of these names, or all that are configured.
pub(crate) fn models(settings: &Settings, names: &[String]) -> Result<Vec<ReadModel>, Failure> {
    let names = if names.is_empty() { &settings.projections } else { names };
    let projections = load_all(&settings.projections_dir, names, &settings.code)
        .map_err(|faults| told(&faults))?;
    Ok(projections.into_iter().map(ReadModel::new).collect())
}

fn model(settings: &Settings, name: &str) -> Result<ReadModel, Failure> {
    let mut models = models(settings, &[name.to_owned()])?;
    Ok(models.swap_remove(0))
}

pub(crate) async fn open_mysql(settings: &Settings) -> Result<Session, Failure> {
    Ok(Session::connect(&mysql_options(settings)?).await.map_err(Trouble::from)?)
}

async fn open_store(settings: &Settings) -> Result<event_store::Session, Failure> {
    let options = store_options(settings)?;
    let mut session = event_store::Session::connect(&options).await.map_err(Trouble::from)?;
    session.require_migrated().await.map_err(Trouble::from)?;
    Ok(session)
}

/// Who runs the command, for the audit table.
fn actor() -> String {
    let name = env::var("SUDO_USER").or_else(|_| env::var("USER")).or_else(|_| env::var("LOGNAME"));
    name.unwrap_or_else(|_| "unknown".to_owned())
}

fn failure(error: mysql::Error) -> Failure {
    Trouble::from(error).into()
}

#[expect(clippy::print_stdout, reason = "the result of a command")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
