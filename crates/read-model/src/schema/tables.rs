//! Making tables.

use std::collections::HashMap;

use domain_events::Category;
use sqlx::{AssertSqlSafe, SqlSafeStr, query, query_as, query_scalar};

use super::{Migrations, all_tables};
use crate::session::within;
use crate::{Error, Ledger, Session};
use projection::Projection;

/// The table in which applied migrations are recorded; an application may keep sqlx's own.
const TABLE: &str = "projector_migrations";

const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "projections", include_str!("../../../../migrations/mysql/0001_projections.sql")),
    (2, "categories", include_str!("../../../../migrations/mysql/0002_categories.sql")),
    (3, "operations", include_str!("../../../../migrations/mysql/0003_operations.sql")),
    (4, "rebuild", include_str!("../../../../migrations/mysql/0004_rebuild.sql")),
    (5, "rebuild jobs", include_str!("../../../../migrations/mysql/0005_rebuild_jobs.sql")),
];

/// What the migration of a projection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrated {
    /// Its tables were made.
    Created,
    /// They were there.
    Unchanged,
    /// They were there, and their bookkeeping has a new version.
    Upgraded,
    /// They were there, but `tables.sql` has changed since they were made.
    Differs,
}

impl Session {
    /// Brings the projector's own tables up to date; does nothing when they are.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn migrate(&mut self) -> Result<(), Error> {
        let files = MIGRATIONS
            .map(|(version, description, sql)| (version, description, sql.into_sql_str()));
        if !self.take_turn().await? {
            return Err(Error::OtherMigrator);
        }
        let result = self.run_migrations(&Migrations::new(TABLE, files.into())).await;
        self.end_turn().await?;
        result
    }

    /// Makes the tables of a projection that are missing. Several migrators take turns.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn migrate_projection(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<Migrated, Error> {
        if !self.take_turn().await? {
            return Err(Error::OtherMigrator);
        }
        let result = self.make_tables(projection, ledger).await;
        self.end_turn().await?;
        result
    }

    /// Makes sure that the tables of a projection are there.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn require_tables(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<(), Error> {
        let existing = self.existing_tables().await?;
        self.require_migrated(&existing).await?;
        for table in &all_tables(projection, ledger) {
            match existing.get(table).map(String::as_str) {
                // Older versions did not record what they made.
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

    /// Makes sure that the tables `projector_…` have everything that this program uses; newer ones have.
    async fn require_migrated(&mut self, existing: &HashMap<String, String>) -> Result<(), Error> {
        if !existing.contains_key(TABLE) {
            return Err(Error::NotMigrated { missing: format!("table {TABLE}") });
        }
        let read = query_scalar(
            "SELECT CAST(COALESCE(MAX(version), 0) AS SIGNED) FROM projector_migrations WHERE success",
        )
        .fetch_one(&mut self.connection);
        let found: i64 = within("reading the version of our tables", read).await?;
        let needed = MIGRATIONS[MIGRATIONS.len() - 1].0;
        if found >= needed { Ok(()) } else { Err(Error::Outdated { found, needed }) }
    }

    /// With other categories, history is missing or too much of it is there.
    async fn require_categories(&mut self, projection: &Projection) -> Result<(), Error> {
        let read = query_scalar("SELECT categories FROM projector_projections WHERE name = ?")
            .bind(&projection.name)
            .fetch_optional(&mut self.connection);
        let built: Option<Option<String>> = within("reading a projection", read).await?;
        let now = categories(projection);
        match built.flatten() {
            Some(built) if built != now => {
                let reason = format!(
                    "it was built from the categories {built}, and projection.toml has {now}: put \
                     them back, or rebuild it from scratch by dropping its tables and its bookkeeping \
                     ({name}__streams, {name}__checkpoint) before `projector migrate`",
                    name = projection.name
                );
                Err(Error::Tables { projection: projection.name.clone(), reason })
            }
            _ => Ok(()),
        }
    }

    async fn make_tables(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<Migrated, Error> {
        let existing = self.existing_tables().await?;
        let is_there = |table: &String| existing.contains_key(table);
        let fault =
            |reason: String| Err(Error::Tables { projection: projection.name.clone(), reason });
        let (streams, checkpoint) = (ledger.streams_table(), ledger.checkpoint_table());
        let missing: Vec<_> =
            projection.tables.iter().filter(|table| !is_there(&table.name)).collect();
        // The bookkeeping is made first: tables without it are not ours.
        let foreign = projection.tables.iter().find(|table| is_there(&table.name));
        if let Some(table) = foreign.filter(|_| !existing.contains_key(streams)) {
            return fault(format!(
                "table {} is there, but not its bookkeeping {streams}: drop or rename the table",
                table.name
            ));
        }
        if let Some(table) = missing.first()
            && existing.contains_key(streams)
            && self.has_rows(streams).await?
        {
            return fault(format!(
                "table {} is gone, but {streams} says that events were applied to it: to recreate the \
                 read model, drop {streams}, {checkpoint} and the projection's other tables",
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
            within("making a table", create).await.map_err(|error| match error {
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

    /// Records from which `tables.sql` the tables were made, and says whether it is still the same.
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
        let read = query_scalar("SELECT tables_hash FROM projector_projections WHERE name = ?")
            .bind(&projection.name);
        let hash: String =
            within("reading a projection", read.fetch_one(&mut self.connection)).await?;
        Ok(match (new, hash == projection.tables_hash) {
            (true, _) => Migrated::Created,
            (false, true) => Migrated::Unchanged,
            (false, false) => Migrated::Differs,
        })
    }

    async fn has_rows(&mut self, table: &str) -> Result<bool, Error> {
        let sql = AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 FROM {table})"));
        let query = query_scalar(sql).persistent(false);
        within("looking into a table", query.fetch_one(&mut self.connection)).await
    }

    /// The tables of the database, with their engines.
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
