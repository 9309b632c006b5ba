//! Applies the files in `migrations/postgres`.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{SqlSafeStr, query, query_scalar};
use tokio::time::timeout;

use crate::session::within;
use crate::{Error, Session};

/// How long a migration may take, including the wait for another program that migrates.
const MIGRATION_LIMIT: Duration = Duration::from_mins(10);
/// The advisory lock of a program that migrates, held until its connection ends. The number is
/// arbitrary.
const LOCK: i64 = 7_166_303;
/// The table that records applied migrations. Not sqlx's default, which the application may use in
/// the same database.
const TABLE: &str = "outbox_relay_migrations";

const MIGRATIONS: [(i64, &str, &str); 8] = [
    (1, "event store", include_str!("../../../migrations/postgres/0001_event_store.sql")),
    (2, "outbox", include_str!("../../../migrations/postgres/0002_outbox.sql")),
    (3, "relay", include_str!("../../../migrations/postgres/0003_relay.sql")),
    (4, "cheaper appends", include_str!("../../../migrations/postgres/0004_cheaper_appends.sql")),
    (5, "append event", include_str!("../../../migrations/postgres/0005_append_event.sql")),
    (6, "no jit", include_str!("../../../migrations/postgres/0006_no_jit.sql")),
    (7, "boundary", include_str!("../../../migrations/postgres/0007_boundary.sql")),
    (
        8,
        "logical replication",
        include_str!("../../../migrations/postgres/0008_logical_replication.sql"),
    ),
];

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.map(|(version, description, sql)| {
        let kind = MigrationType::Simple;
        Migration::new(version, description.into(), kind, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.into());
    migrator.dangerous_set_table_name(TABLE);
    // sqlx's own lock would be subject to the lock timeout below.
    migrator.set_locking(false);
    migrator
}

impl Session {
    /// Applies the missing migrations. Programs that migrate at the same time take turns.
    ///
    /// # Errors
    ///
    /// [`Error::Migration`] when the database was migrated by a newer version or with other files, and
    /// when a migration fails. A failed migration is rolled back.
    pub async fn migrate(&mut self) -> Result<(), Error> {
        let limit = MIGRATION_LIMIT;
        let turn = query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut self.connection);
        within(limit, "waiting for another migrator", turn).await?;
        // DDL that waits for a long transaction blocks every writer behind it.
        let lock_limit = query("SET lock_timeout = '5s'").execute(&mut self.connection);
        within(self.client_limit, "preparing the migration", lock_limit).await?;
        timeout(limit, migrator().run_direct(None, &mut self.connection, false))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "the migration", limit })?
            .map_err(|error| match error {
                MigrateError::Execute(source) => Error::statement("the migration", source),
                other => Error::Migration(other),
            })
    }

    /// Checks that every migration known to this program has been applied.
    pub(crate) async fn require_migrated(&mut self) -> Result<(), Error> {
        let newest: Option<i64> = within(
            self.client_limit(),
            "reading the schema version",
            query_scalar("SELECT max(version) FROM outbox_relay_migrations WHERE success")
                .fetch_one(&mut self.connection),
        )
        .await?;
        let needed = MIGRATIONS.map(|(version, ..)| version).into_iter().max();
        if newest >= needed { Ok(()) } else { Err(Error::NotMigrated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_migration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/postgres");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "README.md" && name != "rights")
            .collect();
        files.sort();
        let known: Vec<_> = MIGRATIONS
            .iter()
            .map(|(version, name, _)| format!("{version:04}_{}.sql", name.replace(' ', "_")))
            .collect();
        assert_eq!(files, known);
    }
}
