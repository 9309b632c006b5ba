//! Checks projections in a scratch database, which is dropped afterwards.

use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use uuid::Uuid;

use super::warnings;
use crate::batching::Forms;
use crate::error::number;
use crate::error_codes::ER_DBACCESS_DENIED_ERROR;
use crate::session::within;
use crate::{Error, Options, Session};
use projection::{Fault, Projection, Statement};

/// The result of [`check`].
#[derive(Default)]
pub struct Checked {
    /// The mistakes in the projections.
    pub faults: Vec<Fault>,
    /// What may not be expected of them, although it is no mistake.
    pub warnings: Vec<Fault>,
    /// The batch forms of each projection, in the order of the projections.
    pub forms: Vec<Forms>,
}

/// Creates the tables of each projection and prepares its statements. Mistakes of the projections are
/// faults in the result.
///
/// # Errors
///
/// When the server fails, or [`Error::NoScratch`].
pub async fn check(options: &Options, projections: &[&Projection]) -> Result<Checked, Error> {
    let mut session = Session::connect(options).await?;
    let database = format!("projector_check_{}", Uuid::new_v4().simple());
    session.run(format!("CREATE DATABASE {database}")).await.map_err(|error| match error {
        Error::Statement { source, .. } if number(&source) == Some(ER_DBACCESS_DENIED_ERROR) => {
            Error::NoScratch
        }
        other => other,
    })?;
    let checked = session.try_out(&database, projections).await;
    // The database is dropped even after an error of the check, which is the one to report.
    let dropped = session.run(format!("DROP DATABASE {database}")).await;
    session.close().await;
    let checked = checked?;
    dropped?;
    Ok(checked)
}

impl Session {
    async fn try_out(
        &mut self,
        database: &str,
        projections: &[&Projection],
    ) -> Result<Checked, Error> {
        self.run(format!("USE {database}")).await?;
        let Checked { mut faults, warnings: mut found, mut forms } = Checked::default();
        for projection in projections {
            for table in &projection.tables {
                let sql = AssertSqlSafe(std::sync::Arc::clone(&table.create.sql));
                let create = sqlx::raw_sql(sql).execute(&mut self.connection);
                faults.extend(fault_of(&table.create, within("creating a table", create).await)?);
                faults.extend(self.engine_fault(&table.name, &table.create).await?);
            }
            for statement in projection.statements() {
                let sql = AssertSqlSafe(std::sync::Arc::clone(&statement.sql)).into_sql_str();
                let prepare = self.connection.prepare(sql);
                faults.extend(fault_of(statement, within("preparing a statement", prepare).await)?);
            }
            let tables = self.table_infos(projection).await?;
            let read = Forms::of_tables(projection, &tables);
            for (statement, sql) in read.set_statements(projection) {
                let prepare = self.connection.prepare(sql);
                faults.extend(fault_of(statement, within("preparing a set", prepare).await)?);
            }
            found.extend(warnings::warnings(projection, &tables));
            forms.push(read);
        }
        Ok(Checked { faults, warnings: found, forms })
    }

    /// The fault of a table with another engine than `InnoDB`, because a rollback would not undo changes of
    /// its rows.
    async fn engine_fault(
        &mut self,
        table: &str,
        create: &Statement,
    ) -> Result<Option<Fault>, Error> {
        let read = sqlx::query_scalar(
            "SELECT engine FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_name = ? AND engine <> 'InnoDB'",
        )
        .bind(table)
        .fetch_optional(&mut self.connection);
        let engine: Option<String> = within("reading the engine of a table", read).await?;
        Ok(engine.map(|engine| Fault {
            file: create.file.to_path_buf(),
            line: Some(create.line),
            reason: Error::Engine { table: table.to_owned(), engine }.to_string(),
        }))
    }

    pub(crate) async fn run(&mut self, sql: String) -> Result<(), Error> {
        let run = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection);
        within("using a scratch database", run).await.map(drop)
    }
}

/// Converts the server's response to a statement: no fault, a fault of the statement, or an error of the
/// server.
fn fault_of<T>(statement: &Statement, result: Result<T, Error>) -> Result<Option<Fault>, Error> {
    let message = match &result {
        Ok(_) => return Ok(None),
        Err(Error::Statement { source, .. } | Error::NoTable { source, .. }) => {
            let number = number(source).unwrap_or_default();
            source.as_database_error().map(|error| format!("{} ({number})", error.message()))
        }
        Err(_) => None,
    };
    let Some(message) = message else { return result.map(|_| None) };
    // MySQL counts lines from the first line of the statement.
    let line = message
        .rsplit_once(" at line ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok())
        .map_or(statement.line, |line| statement.line + line - 1);
    let reason = message.split(" at line ").next().unwrap_or(&message);
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(Fault { file: statement.file.to_path_buf(), line: Some(line), reason }))
}
