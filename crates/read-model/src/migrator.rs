//! Running migrations, one migrator at a time, whatever interrupts them.
//!
//! MySQL commits each statement that changes a table by itself, so a migrator that dies in the middle
//! leaves a migration half done. sqlx records that and refuses to go on. But each of our statements is done
//! as a whole or not at all, and MySQL refuses to do it twice: so the next migrator can finish the rest.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlStr, query, query_scalar};
use tokio::time::timeout;

use crate::error::number;
use crate::error_codes::{ER_DUP_FIELDNAME, ER_NO_SUCH_TABLE, ER_TABLE_EXISTS_ERROR};
use crate::session::within;
use crate::{Error, Session};

/// How long all migrations of one kind may take.
const MIGRATION_LIMIT: Duration = Duration::from_mins(10);
/// How long one migrator waits for another, in seconds.
const TURN_SECONDS: u32 = 10;

/// Migrations, and the table in which they are recorded.
pub(crate) struct Migrations {
    table: String,
    /// Version, description and SQL.
    files: Vec<(i64, &'static str, SqlStr)>,
}

impl Migrations {
    /// `files` in the order of their versions; `table` must need no quotes.
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
    /// Runs the migrations that are missing.
    pub(crate) async fn run_migrations(&mut self, migrations: &Migrations) -> Result<(), Error> {
        let limit = MIGRATION_LIMIT;
        let run = async {
            self.finish_interrupted(migrations).await?;
            let migrator = migrations.migrator();
            let migrated = migrator.run_direct(None, &mut self.connection, false).await;
            migrated.map_err(|error| match error {
                MigrateError::Execute(source) => Error::of("the migration", source),
                other => Error::Migration(other),
            })
        };
        timeout(limit, run)
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "the migration", limit })?
    }

    /// Does the rest of migrations that a migrator began and did not end.
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
                    Err(error) if is_done(&error) => {}
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

    /// Waits until no other migrator works on this database, and keeps them out until
    /// [`Session::end_turn`], or the end of the session. Says whether that was in time.
    pub(crate) async fn take_turn(&mut self) -> Result<bool, Error> {
        let lock = query_scalar(
            "SELECT GET_LOCK(CONCAT('projector.', LEFT(SHA2(DATABASE(), 256), 40)), ?)",
        )
        .bind(TURN_SECONDS);
        // Longer than other statements may take.
        let limit = Duration::from_secs(u64::from(TURN_SECONDS) + 5);
        let operation = "waiting for another migrator";
        let locked: Option<i64> = timeout(limit, lock.fetch_one(&mut self.connection))
            .await
            .map_err(|_elapsed| Error::Timeout { operation, limit })?
            .map_err(|source| Error::of(operation, source))?;
        Ok(locked == Some(1))
    }

    /// Lets other migrators in.
    pub(crate) async fn end_turn(&mut self) -> Result<(), Error> {
        let release =
            query("SELECT RELEASE_LOCK(CONCAT('projector.', LEFT(SHA2(DATABASE(), 256), 40)))");
        within("letting other migrators in", release.execute(&mut self.connection)).await.map(drop)
    }
}

/// Whether the server has refused to do something twice.
fn is_done(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(ER_DUP_FIELDNAME | ER_TABLE_EXISTS_ERROR))
}

/// The statements of one of our own files, in which a semicolon stands in a comment or at the end of a
/// statement, and nowhere else.
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
    fn a_semicolon_in_a_comment_ends_no_statement() {
        let sql =
            "-- First; second.\nALTER TABLE t\n    -- A; b.\n    ADD COLUMN c INT;\n\nDO 0;\n";
        assert_eq!(statements(sql), ["ALTER TABLE t\n    ADD COLUMN c INT", "DO 0"]);
    }
}
