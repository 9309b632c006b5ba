//! Commands for operators. They need PostgreSQL alone, so that they work while the broker is down.

mod blocked;
mod reconcile;
mod status;

use std::env;
use std::time::Duration;

use clap::Args;
use daemon::{Exit, Failure};
use event_store::{Error, Session};
use serde::Serialize;

use crate::Settings;
use crate::run::store_options;

pub(crate) use blocked::Blocked;
pub(crate) use reconcile::{Reconcile, Republish};
pub(crate) use status::status;

/// How long a statement of a command may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// How to print.
#[derive(Args, Debug, Clone, Copy)]
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

/// Brings the event store and the outbox up to date.
pub(crate) async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let options = store_options(settings, "outbox-relay migrate")?;
    let mut session = Session::connect(&options).await.map_err(failure)?;
    session.migrate().await.map_err(failure)?;
    session.close().await;
    say(&format!("the event store at {} is up to date", options.address()));
    Ok(())
}

/// A session in a migrated event store. In trouble, what is cheap otherwise may take a while.
async fn open(settings: &Settings, limit: Duration) -> Result<Session, Failure> {
    let options = store_options(settings, "outbox-relay command")?.statement_limit(limit);
    let mut session = Session::connect(&options).await.map_err(failure)?;
    session.require_migrated().await.map_err(failure)?;
    Ok(session)
}

/// Who runs the command, for the audit table.
fn actor() -> String {
    let name = env::var("SUDO_USER").or_else(|_| env::var("USER")).or_else(|_| env::var("LOGNAME"));
    name.unwrap_or_else(|_| "unknown".to_owned())
}

pub(crate) fn failure(error: Error) -> Failure {
    let exit = match error {
        Error::Url => Exit::Configuration,
        Error::Login { .. } => Exit::Login,
        Error::Unreachable { .. } | Error::NotPrimary { .. } | Error::Timeout { .. } => {
            Exit::Unavailable
        }
        Error::NotWaiting { .. } => Exit::Data,
        Error::NotMigrated
        | Error::Migration(_)
        | Error::LimitsIgnored
        | Error::Refused { .. }
        | Error::Statement { .. }
        | Error::Row { .. }
        | Error::NotMarked { .. } => Exit::Failed,
    };
    Failure::new(exit, error)
}

#[expect(clippy::print_stdout, reason = "the result of a command")]
fn say(text: &str) {
    println!("{text}");
}
