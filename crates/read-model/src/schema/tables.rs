//! Creates the tables of projections and those of the projector itself.

use std::collections::HashMap;

use domain_events::Category;
use sqlx::{AssertSqlSafe, SqlSafeStr, query, query_as, query_scalar};

use super::all_tables;
use crate::migrator::Migrations;
use crate::session::within;
use crate::{Error, Ledger, Session};
use projection::Projection;

/// The table of applied migrations. It is not sqlx's default, which an application in the same database may
/// use.
const TABLE: &str = "projector_migrations";

const MIGRATIONS: [(i64, &str, &str); 10] = [
    (1, "projections", include_str!("../../../../migrations/mysql/0001_projections.sql")),
    (2, "categories", include_str!("../../../../migrations/mysql/0002_categories.sql")),
    (3, "operations", include_str!("../../../../migrations/mysql/0003_operations.sql")),
    (4, "rebuild", include_str!("../../../../migrations/mysql/0004_rebuild.sql")),
    (5, "rebuild jobs", include_str!("../../../../migrations/mysql/0005_rebuild_jobs.sql")),
    (6, "definitions", include_str!("../../../../migrations/mysql/0006_definitions.sql")),
    (7, "order", include_str!("../../../../migrations/mysql/0007_order.sql")),
    (8, "reports", include_str!("../../../../migrations/mysql/0008_reports.sql")),
    (9, "event uuids", include_str!("../../../../migrations/mysql/0009_event_uuids.sql")),
    (10, "divergence", include_str!("../../../../migrations/mysql/0010_divergence.sql")),
];

/// The result of migrating a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrated {
    /// Its tables were created.
    Created,
    /// Its tables existed.
    Unchanged,
    /// Its tables existed, and their bookkeeping has a new version.
    Upgraded,
    /// Its tables existed, but `tables.sql` has changed since they were created.
    Differs,
}

impl Session {
    /// Migrates the projector's own tables to the newest version.
    ///
    /// # Errors
    ///
    /// When MySQL fails; [`Error::OtherMigrator`] if another migrator runs for too long.
    pub async fn migrate(&mut self) -> Result<(), Error> {
        let files = MIGRATIONS
            .map(|(version, description, sql)| (version, description, sql.into_sql_str()));
        if !self.lock_migrations().await? {
            return Err(Error::OtherMigrator);
        }
        let result = self.run_migrations(&Migrations::new(TABLE, files.into())).await;
        let unlocked = self.unlock_migrations().await;
        // The first error matters more.
        result?;
        unlocked
    }

    /// Creates the missing tables of a projection and migrates its bookkeeping. A lock lets only one
    /// migrator run at a time.
    ///
    /// # Errors
    ///
    /// When MySQL fails; [`Error::Tables`] if the present tables do not match; [`Error::OtherMigrator`].
    pub async fn migrate_projection(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<Migrated, Error> {
        if !self.lock_migrations().await? {
            return Err(Error::OtherMigrator);
        }
        let result = self.create_tables(projection, ledger).await;
        let unlocked = self.unlock_migrations().await;
        // The first error matters more.
        let done = result?;
        unlocked?;
        Ok(done)
    }

    /// Checks that a projection can be applied: its tables exist, have the engine `InnoDB`, and match the
    /// version and the categories that this program needs.
    ///
    /// # Errors
    ///
    /// When MySQL fails, or with the first condition that does not hold.
    pub async fn require_tables(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<(), Error> {
        let existing = self.existing_tables().await?;
        self.require_migrated(&existing).await?;
        for table in &all_tables(projection, ledger) {
            match existing.get(table).map(String::as_str) {
                // Older versions have no such table; `require_bookkeeping` reports that.
                None if table == ledger.migrations_table() => {}
                None => return Err(Error::NotMigrated { missing: format!("table {table}") }),
                Some("InnoDB") => {}
                Some(engine) => {
                    let (table, engine) = (table.clone(), engine.to_owned());
                    return Err(Error::Engine { table, engine });
                }
            }
        }
        self.require_bookkeeping(ledger).await?;
        self.require_categories(projection).await
    }

    /// Checks that the version of the tables `projector_…` suffices. A newer one does, because migrations
    /// keep what the previous release uses.
    async fn require_migrated(&mut self, existing: &HashMap<String, String>) -> Result<(), Error> {
        if !existing.contains_key(TABLE) {
            return Err(Error::NotMigrated { missing: format!("table {TABLE}") });
        }
        let read = query_scalar(
            "SELECT CAST(COALESCE(MAX(version), 0) AS SIGNED) FROM projector_migrations WHERE success",
        )
        .fetch_one(&mut self.connection);
        let found: i64 = within("reading the version of the projector's tables", read).await?;
        let needed = MIGRATIONS[MIGRATIONS.len() - 1].0;
        if found >= needed { Ok(()) } else { Err(Error::Outdated { found, needed }) }
    }

    /// Checks that the categories are those of the read model. With others, it would lack events or contain
    /// too many.
    async fn require_categories(&mut self, projection: &Projection) -> Result<(), Error> {
        let read = query_scalar("SELECT categories FROM projector_projections WHERE name = ?")
            .bind(&projection.name)
            .fetch_optional(&mut self.connection);
        let built: Option<Option<String>> = within("reading a projection", read).await?;
        let now = categories(projection);
        match built.flatten() {
            Some(built) if built != now => {
                let reason = format!(
                    "its tables were built from the categories {built}, but projection.toml has {now}: \
                     restore the categories, or drop its tables and its bookkeeping ({name}__streams, \
                     {name}__checkpoint) and run `projector migrate`",
                    name = projection.name
                );
                Err(Error::Tables { projection: projection.name.clone(), reason })
            }
            _ => Ok(()),
        }
    }

    /// Creates missing tables while the migration lock is held.
    async fn create_tables(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<Migrated, Error> {
        let existing = self.existing_tables().await?;
        let exists = |table: &String| existing.contains_key(table);
        let fault =
            |reason: String| Err(Error::Tables { projection: projection.name.clone(), reason });
        let (streams, checkpoint) = (ledger.streams_table(), ledger.checkpoint_table());
        let missing: Vec<_> =
            projection.tables.iter().filter(|table| !exists(&table.name)).collect();
        // The bookkeeping is created first, so tables without it belong to somebody else.
        let foreign = projection.tables.iter().find(|table| exists(&table.name));
        if let Some(table) = foreign.filter(|_| !existing.contains_key(streams)) {
            return fault(format!(
                "table {} exists, but its bookkeeping {streams} does not: drop or rename the table",
                table.name
            ));
        }
        if let Some(table) = missing.first()
            && existing.contains_key(streams)
            && self.has_rows(streams).await?
        {
            return fault(format!(
                "table {} is missing, but {streams} shows that events were applied to it: to recreate \
                 the read model, drop {streams}, {checkpoint} and the projection's other tables",
                table.name
            ));
        }
        let before = self.bookkeeping_version(ledger).await?;
        self.run_migrations(&ledger.migrations()).await?;
        let upgraded =
            existing.contains_key(streams) && before != self.bookkeeping_version(ledger).await?;
        for table in &missing {
            let sql = AssertSqlSafe(std::sync::Arc::clone(&table.create.sql));
            let create = sqlx::raw_sql(sql).execute(&mut self.connection);
            within("creating a table", create).await.map_err(|error| match error {
                Error::Statement { source, .. } => Error::of_handler(&table.create, source),
                other => other,
            })?;
        }
        let migrated = self.register(projection, missing.len() == projection.tables.len()).await?;
        Ok(match migrated {
            Migrated::Unchanged if upgraded => Migrated::Upgraded,
            other => other,
        })
    }

    /// Records the hashes of the files from which new tables were created. For existing tables, compares
    /// the recorded hash of `tables.sql`.
    async fn register(&mut self, projection: &Projection, new: bool) -> Result<Migrated, Error> {
        let sql = if new {
            "REPLACE INTO projector_projections (name, tables_hash, categories, definition_hash)
             VALUES (?, ?, ?, ?)"
        } else {
            "INSERT INTO projector_projections (name, tables_hash, categories, definition_hash)
             VALUES (?, ?, ?, ?) AS new
             ON DUPLICATE KEY UPDATE
                 categories = COALESCE(projector_projections.categories, new.categories)"
        };
        let register = query(sql)
            .bind(&projection.name)
            .bind(&projection.tables_hash)
            .bind(categories(projection))
            .bind(&projection.definition_hash)
            .execute(&mut self.connection);
        within("registering a projection", register).await?;
        let read = query_as(
            "SELECT tables_hash, definition_hash FROM projector_projections WHERE name = ?",
        )
        .bind(&projection.name);
        let (tables, definition): (String, Option<String>) =
            within("reading a projection", read.fetch_one(&mut self.connection)).await?;
        if definition.as_ref() == Some(&projection.definition_hash) {
            self.store_definition(projection).await?;
        }
        Ok(match (new, tables == projection.tables_hash) {
            (true, _) => Migrated::Created,
            (false, true) => Migrated::Unchanged,
            (false, false) => Migrated::Differs,
        })
    }

    async fn has_rows(&mut self, table: &str) -> Result<bool, Error> {
        let sql = AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 FROM {table})"));
        let query = query_scalar(sql).persistent(false);
        within("checking a table for rows", query.fetch_one(&mut self.connection)).await
    }

    /// The tables of the database by name, with their engines.
    async fn existing_tables(&mut self) -> Result<HashMap<String, String>, Error> {
        let query = query_as(
            "SELECT table_name, COALESCE(engine, 'view') FROM information_schema.tables
             WHERE table_schema = DATABASE()",
        );
        let tables: Vec<(String, String)> =
            within("listing tables", query.fetch_all(&mut self.connection)).await?;
        Ok(tables.into_iter().collect())
    }
}

fn categories(projection: &Projection) -> String {
    let mut names: Vec<&str> = projection.categories.iter().map(Category::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_migration() {
        for (folder, migrations) in
            [("mysql", &MIGRATIONS[..]), ("mysql/projection", &crate::bookkeeping::MIGRATIONS)]
        {
            let folder = format!("{}/../../migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<_> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != "README.md" && name != "projection")
                .collect();
            files.sort();
            let known: Vec<_> = migrations
                .iter()
                .map(|(version, name, _)| format!("{version:04}_{}.sql", name.replace(' ', "_")))
                .collect();
            assert_eq!(files, known);
        }
    }
}
