//! Making tables.

use std::collections::HashMap;
use std::time::Duration;

use domain_events::Category;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr, query, query_as, query_scalar};
use tokio::time::timeout;

use super::session::within;
use super::{Error, Ledger, Session};
use crate::projection::Projection;

/// How long all of the projector's own migrations may take.
const MIGRATION_LIMIT: Duration = Duration::from_mins(10);
/// How long one migrator waits for another, in seconds.
const TURN_SECONDS: u32 = 10;
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
pub(crate) enum Migrated {
    /// Its tables were made.
    Created,
    /// They were there.
    Unchanged,
    /// They were there, but `tables.sql` has changed since they were made.
    Differs,
}

impl Session {
    /// Brings the projector's own tables up to date; does nothing when they are.
    pub(crate) async fn migrate(&mut self) -> Result<(), Error> {
        let migrations = MIGRATIONS.map(|(version, description, sql)| {
            let kind = MigrationType::Simple;
            Migration::new(version, description.into(), kind, sql.into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(migrations.into());
        migrator.dangerous_set_table_name(TABLE);
        let limit = MIGRATION_LIMIT;
        timeout(limit, migrator.run_direct(None, &mut self.connection, false))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "the migration", limit })?
            .map_err(|error| match error {
                MigrateError::Execute(source) => Error::of("the migration", source),
                other => Error::Migration(other),
            })
    }

    /// Makes the tables of a projection that are missing. Several migrators take turns.
    pub(crate) async fn migrate_projection(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<Migrated, Error> {
        let lock = query_scalar(
            "SELECT GET_LOCK(CONCAT('projector.', LEFT(SHA2(DATABASE(), 256), 40)), ?)",
        )
        .bind(TURN_SECONDS);
        let locked: Option<i64> =
            within("waiting for another migrator", lock.fetch_one(&mut self.connection)).await?;
        if locked != Some(1) {
            let reason = "another `projector migrate` is at work".to_owned();
            return Err(Error::Tables { projection: projection.name.clone(), reason });
        }
        let result = self.make_tables(projection, ledger).await;
        let release =
            query("SELECT RELEASE_LOCK(CONCAT('projector.', LEFT(SHA2(DATABASE(), 256), 40)))");
        within("letting other migrators in", release.execute(&mut self.connection)).await?;
        result
    }

    /// Makes sure that the tables of a projection are there.
    pub(crate) async fn require_tables(
        &mut self,
        projection: &Projection,
        ledger: &Ledger,
    ) -> Result<(), Error> {
        let existing = self.existing_tables().await?;
        let own = projection.tables.iter().map(|table| &table.name);
        for table in own.chain(&ledger.tables) {
            match existing.get(table).map(String::as_str) {
                None => return Err(Error::NotMigrated { table: table.clone() }),
                Some("InnoDB") => {}
                Some(engine) => {
                    let (table, engine) = (table.clone(), engine.to_owned());
                    return Err(Error::Engine { table, engine });
                }
            }
        }
        self.require_categories(projection).await
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
                     them back, or build it anew by dropping its tables and its bookkeeping \
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
        let [streams, checkpoint, ..] = &ledger.tables;
        let missing: Vec<_> =
            projection.tables.iter().filter(|table| !is_there(&table.name)).collect();
        // The bookkeeping is made first: tables without it are not ours.
        let foreign = projection.tables.iter().find(|table| is_there(&table.name));
        if let Some(table) = foreign.filter(|_| !is_there(streams)) {
            return fault(format!(
                "table {} is there, but not its bookkeeping {streams}: drop or rename the table",
                table.name
            ));
        }
        if let Some(table) = missing.first()
            && is_there(streams)
            && self.has_rows(streams).await?
        {
            return fault(format!(
                "table {} is gone, but {streams} says that events were applied to it: to build the \
                 read model anew, drop {streams}, {checkpoint} and the projection's other tables",
                table.name
            ));
        }
        for create in ledger.create.clone() {
            let create = query(create).execute(&mut self.connection);
            within("making the bookkeeping", create).await?;
        }
        for table in &missing {
            let sql = AssertSqlSafe(std::sync::Arc::clone(&table.create.sql));
            let create = sqlx::raw_sql(sql).execute(&mut self.connection);
            within("making a table", create).await.map_err(|error| match error {
                Error::Statement { source, .. } => Error::of_handler(&table.create, source),
                other => other,
            })?;
        }
        self.register(projection, missing.len() == projection.tables.len()).await
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
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/mysql");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "README.md")
            .collect();
        files.sort();
        let known: Vec<_> = MIGRATIONS
            .iter()
            .map(|(version, name, _)| format!("{version:04}_{}.sql", name.replace(' ', "_")))
            .collect();
        assert_eq!(files, known);
    }
}
