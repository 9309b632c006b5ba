//! `projector migrate`.

use daemon::Failure;
use read_model::{Migrated, ReadModel};

use super::{failure, open_mysql};
use crate::Settings;
use daemon::output::say;

/// Brings the bookkeeping up to this version, and creates the missing tables of projections.
pub(crate) async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let definitions = settings.load(&settings.projections)?;
    let mut session = open_mysql(settings).await?;
    session.migrate().await.map_err(failure)?;
    for model in definitions.into_iter().map(ReadModel::new) {
        let migrated = session.migrate_projection(&model.projection, &model.ledger).await;
        let name = model.name();
        say(&match migrated.map_err(failure)? {
            Migrated::Created => format!("{name}: the tables were created"),
            Migrated::Upgraded => format!("{name}: the bookkeeping was brought up to this version"),
            Migrated::Unchanged => format!("{name}: up to date"),
            Migrated::Differs => format!(
                "{name}: tables.sql has changed since the tables were created; they were not changed. Run \
                 `projector rebuild start {name}` to build new tables without downtime"
            ),
        });
    }
    session.close().await;
    Ok(())
}
