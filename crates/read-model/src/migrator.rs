//! Runs migrations, one migrator at a time, and finishes interrupted ones.
//!
//! MySQL commits each statement that changes a table by itself, so an interrupted migrator leaves a partly
//! applied migration. sqlx records that, and refuses to continue. However, each statement of these
//! migrations is atomic, and MySQL refuses to run it twice. The next migrator can therefore run all
//! statements again, and ignore the refusals.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlStr, query, query_scalar};
use tokio::time::timeout;

use crate::error::number;
use crate::error_codes::{ER_DUP_FIELDNAME, ER_NO_SUCH_TABLE, ER_TABLE_EXISTS_ERROR};
use crate::session::within;
use crate::{Error, Session};

/// The longest time for the migrations of one table of applied migrations.
const MIGRATION_LIMIT: Duration = Duration::from_mins(10);
/// The longest wait for another migrator, in seconds.
const TURN_SECONDS: u32 = 10;

/// Migrations, and the table that records the applied ones.
pub(crate) struct Migrations {
    table: String,
    /// Version, description and SQL.
    files: Vec<(i64, &'static str, SqlStr)>,
}

impl Migrations {
    /// `files` must be sorted by version; `table` must be a name that needs no quotes.
    pub(crate) fn new(table: &str, files: Vec<(i64, &'static str, SqlStr)>) -> Self {
        Self { table: table.to_owned(), files }
    }

    fn migrator(&self) -> Migrator {
        let migration = |(version, description, sql): &(i64, &'static str, SqlStr)| {
            let (kind, sql) = (MigrationType::Simple, sql.clone());
            Migration::new(*version, (*description).into(), kind, sql, false)
        };
        let migrations: Vec<_> = self.files.iter().map(migration).collect();
        let mut migrator = Migrator::with_migrations(migrations);
        migrator.dangerous_set_table_name(self.table.clone());
        migrator
    }
}

impl Session {
    /// Runs the migrations that have not been applied.
    pub(crate) async fn run_migrations(&mut self, migrations: &Migrations) -> Result<(), Error> {
        let limit = MIGRATION_LIMIT;
        let run = async {
            self.finish_interrupted(migrations).await?;
            let migrator = migrations.migrator();
            let migrated = migrator.run_direct(None, &mut self.connection, false).await;
            migrated.map_err(|error| match error {
                MigrateError::Execute(source) => Error::of("migrating tables", source),
                other => Error::Migration(other),
            })
        };
        timeout(limit, run)
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "migrating tables", limit })?
    }

    /// Finishes migrations that another migrator has begun and not completed.
    async fn finish_interrupted(&mut self, migrations: &Migrations) -> Result<(), Error> {
        let operation = "finishing an interrupted migration";
        let table = &migrations.table;
        let sql = AssertSqlSafe(format!("SELECT version FROM {table} WHERE NOT success"));
        let begun = query_scalar(sql).persistent(false).fetch_all(&mut self.connection).await;
        let begun: Vec<i64> = match begun {
            Err(error) if number(&error) == Some(ER_NO_SUCH_TABLE) => return Ok(()),
            begun => begun.map_err(|source| Error::of(operation, source))?,
        };
        for (version, _, sql) in &migrations.files {
            if !begun.contains(version) {
                continue;
            }
            for statement in statements(sql.as_str()) {
                let statement = sqlx::raw_sql(AssertSqlSafe(statement));
                match statement.execute(&mut self.connection).await {
                    Err(error) if is_already_applied(&error) => {}
                    Err(source) => return Err(Error::of(operation, source)),
                    Ok(_done) => {}
                }
            }
            let sql = AssertSqlSafe(format!("UPDATE {table} SET success = TRUE WHERE version = ?"));
            let record = query(sql).persistent(false).bind(version).execute(&mut self.connection);
            record.await.map_err(|source| Error::of(operation, source))?;
        }
        Ok(())
    }

    /// Waits until no other migrator runs on this database, and locks others out until
    /// [`Session::unlock_migrations`] or the end of the session. Returns false if the wait took too long.
    pub(crate) async fn lock_migrations(&mut self) -> Result<bool, Error> {
        let lock = query_scalar(
            "SELECT GET_LOCK(CONCAT('projector.', LEFT(SHA2(DATABASE(), 256), 40)), ?)",
        )
        .bind(TURN_SECONDS);
        // The deadline must exceed the wait in the statement.
        let limit = Duration::from_secs(u64::from(TURN_SECONDS) + 5);
        let operation = "waiting for another migrator";
        let locked: Option<i64> = timeout(limit, lock.fetch_one(&mut self.connection))
            .await
            .map_err(|_elapsed| Error::Timeout { operation, limit })?
            .map_err(|source| Error::of(operation, source))?;
        Ok(locked == Some(1))
    }

    /// Lets other migrators run.
    pub(crate) async fn unlock_migrations(&mut self) -> Result<(), Error> {
        let release =
            query("SELECT RELEASE_LOCK(CONCAT('projector.', LEFT(SHA2(DATABASE(), 256), 40)))");
        within("releasing the migration lock", release.execute(&mut self.connection))
            .await
            .map(drop)
    }
}

/// Whether the error shows that the statement was already applied.
fn is_already_applied(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(ER_DUP_FIELDNAME | ER_TABLE_EXISTS_ERROR))
}

/// Splits a migration into its statements. In these files, comments have their own lines, and a semicolon
/// outside a comment always ends a statement.
fn statements(sql: &str) -> Vec<String> {
    let code: Vec<&str> = sql.lines().filter(|line| !line.trim().starts_with("--")).collect();
    let statements = code.join("\n");
    let statements = statements.split(';').map(str::trim).filter(|text| !text.is_empty());
    statements.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semicolon_in_a_comment_does_not_end_a_statement() {
        let sql =
            "-- First; second.\nALTER TABLE t\n    -- A; b.\n    ADD COLUMN c INT;\n\nDO 0;\n";
        assert_eq!(statements(sql), ["ALTER TABLE t\n    ADD COLUMN c INT", "DO 0"]);
    }
}
