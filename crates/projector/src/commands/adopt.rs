//! `projector adopt`

use daemon::Failure;
use daemon::output::{actor, say};
use read_model::Service;

use super::{failure, model, open_mysql};
use crate::Settings;
use crate::error::Error;

/// Puts the files at hand in service, even if others have replaced them.
pub(crate) async fn adopt(settings: &Settings, projection: &str) -> Result<(), Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    session.require_tables(&model.projection, &model.ledger).await.map_err(failure)?;
    let person = actor();
    let done = session.put_in_service(&model.ledger, &model.projection, Some(&person)).await;
    let done = done.map_err(failure)?;
    session.close().await;
    let projection = projection.to_owned();
    match done {
        Service::InService => say(&format!("these files of {projection} are already in service")),
        Service::New => say(&format!(
            "these files of {projection} are in service; projectors with other files wait. They are applied \
             to events from now on: `projector rebuild start {projection}` applies them to earlier events too"
        )),
        Service::OtherTables => return Err(Error::OtherTables { projection }.into()),
        Service::Rebuilding => return Err(Error::Undecided { projection }.into()),
        // Only for a program that starts.
        Service::Superseded => return Err(Error::OtherHandlers { projection }.into()),
    }
    Ok(())
}
