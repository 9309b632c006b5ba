//! The commands for operators, and the endpoint that lets applications wait for an event.

mod adopt;
mod check;
mod dead;
mod migrate;
mod parked;
mod rebuild;
mod reconcile;
mod reconcile_history;
mod show;
mod status;
mod topology;
mod verify;
mod wait_endpoint;

use daemon::Failure;
use read_model::{ReadModel, Session};

pub(crate) use self::adopt::adopt;
pub(crate) use self::check::{Check, check};
pub(crate) use self::dead::Dead;
pub(crate) use self::migrate::migrate;
pub(crate) use self::parked::{Parked, pause, resume};
#[cfg(test)]
pub(crate) use self::rebuild::rebuilder;
pub(crate) use self::rebuild::{Rebuild, cleanup, roll_back};
pub(crate) use self::reconcile::{Reconcile, reconcile};
pub(crate) use self::reconcile_history::{ReconcileHistory, reconcile_history};
pub(crate) use self::show::{Show, show};
pub(crate) use self::status::{Status, status};
pub(crate) use self::topology::Topology;
pub(crate) use self::verify::{Verify, verify};
pub(crate) use self::wait_endpoint::{route as wait_endpoint, watch};
use crate::Settings;
use crate::error::{Error, ServerError};

/// The projections with these names, or all configured ones if `names` is empty.
fn models(settings: &Settings, names: &[String]) -> Result<Vec<ReadModel>, Failure> {
    let names = if names.is_empty() { &settings.projections } else { names };
    Ok(settings.load(names)?.into_iter().map(ReadModel::new).collect())
}

fn model(settings: &Settings, name: &str) -> Result<ReadModel, Failure> {
    let mut models = models(settings, &[name.to_owned()])?;
    Ok(models.swap_remove(0))
}

async fn open_mysql(settings: &Settings) -> Result<Session, Failure> {
    Session::connect(&settings.mysql()?).await.map_err(failure)
}

async fn open_store(settings: &Settings) -> Result<event_store::Session, Failure> {
    let mut session = event_store::Session::connect(&settings.store()?).await.map_err(failure)?;
    session.require_complete().await.map_err(failure)?;
    Ok(session)
}

fn failure(error: impl Into<ServerError>) -> Failure {
    Error::from(error).into()
}
