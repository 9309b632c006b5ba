//! Commands for operators. They need PostgreSQL only, so that they work while the broker is down.

mod causes;
mod grants;
mod parked;
mod reconcile;
mod status;

use std::time::Duration;

use anyhow::anyhow;
use daemon::output::say;
use daemon::{Exit, Failure, chain};
use event_store::{Error, Session};

use crate::Settings;

pub(crate) use causes::of_locker;
pub(crate) use grants::Grants;
pub(crate) use parked::Parked;
pub(crate) use reconcile::{Reconcile, Republish};
pub(crate) use status::status;

/// How long one statement of a command may take. Longer than in the daemon: commands are needed most
/// when the tables are full.
const STATEMENT_LIMIT: Duration = Duration::from_mins(1);

/// `outbox-relay migrate`.
pub(crate) async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let options = settings.store_options("outbox-relay migrate")?;
    let mut session = Session::connect(&options).await.map_err(failure)?;
    session.migrate().await.map_err(failure)?;
    session.close().await;
    say(&format!("the event store at {} is up to date", options.address()));
    Ok(())
}

/// Opens a session in a migrated event store, whose statements may take up to `limit`.
async fn open(settings: &Settings, limit: Duration) -> Result<Session, Failure> {
    let options = settings.store_options("outbox-relay command")?.statement_limit(limit);
    let mut session = Session::connect(&options).await.map_err(failure)?;
    session.require_complete().await.map_err(failure)?;
    Ok(session)
}

fn failure(error: Error) -> Failure {
    let exit = match error {
        Error::Url => Exit::Configuration,
        Error::Login { .. } => Exit::Login,
        Error::Unreachable { .. }
        | Error::NotPrimary { .. }
        | Error::Subscriber { .. }
        | Error::PositionsBehind { .. }
        | Error::Timeout { .. } => Exit::Unavailable,
        Error::NotWaiting { .. } => {
            let error = chain(&error);
            let remedy = "`outbox-relay parked list --all` shows the events that streams wait for";
            return Failure::new(Exit::Data, anyhow!("{error}: {remedy}"));
        }
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
