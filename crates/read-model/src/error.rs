//! What can go wrong with MySQL, by what the caller can do about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

use domain_events::InvalidId;
use projection::Statement;

use crate::error_codes::{
    ER_BAD_FIELD_ERROR, ER_NO_SUCH_TABLE, ER_PARSE_ERROR, ER_WRONG_VALUE_COUNT_ON_ROW, is_transient,
};

/// A failure of MySQL. No variant carries a payload, a password or a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be used; nothing was tried.
    #[error("the MySQL URL is not valid: expected mysql://user:password@host:port/database")]
    Url,
    /// There is no connection: the server is away, or the way to it.
    #[error("MySQL at {address} cannot be reached")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// What the network or the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The server refused user, password or database.
    #[error("MySQL at {address} refused the login: check user, password and database")]
    Login {
        /// Host, port and database.
        address: String,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The server does not work as the bookkeeping needs it to.
    #[error("MySQL has {name} = {found}, and {wanted} is needed")]
    Setting {
        /// The session variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// The value it was set to.
        wanted: &'static str,
    },
    /// No answer in time; the connection must not be used again.
    #[error("{operation} in MySQL gave no answer within {limit:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// MySQL lacks a projection, or a table of it.
    #[error("{missing} is missing in MySQL: run `projector migrate`")]
    NotMigrated {
        /// Which table or projection.
        missing: String,
    },
    /// A statement of ours names a table that MySQL does not have.
    #[error("a table is missing in MySQL, as {operation} showed: run `projector migrate`")]
    NoTable {
        /// What was being done.
        operation: &'static str,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The bookkeeping of a projection is of an older version than this program needs.
    #[error(
        "the bookkeeping of {projection} has version {found}, and this program needs {needed}: run \
         `projector migrate`"
    )]
    OutdatedBookkeeping {
        /// The projection.
        projection: String,
        /// The version that MySQL has; 0 when none was recorded.
        found: i64,
        /// The version that is needed.
        needed: i64,
    },
    /// The tables `projector_…` are of an older version than this program needs.
    #[error(
        "the tables projector_… in MySQL have version {found}, and this program needs {needed}: run \
         `projector migrate`"
    )]
    Outdated {
        /// The version that MySQL has; 0 when none was recorded.
        found: i64,
        /// The version that is needed.
        needed: i64,
    },
    /// A row of the bookkeeping holds what none of our programs writes.
    #[error("the row {key} of table {table} cannot be read: was it changed by hand?")]
    Row {
        /// The table.
        table: String,
        /// Which row.
        key: String,
        /// What is wrong with it.
        #[source]
        source: InvalidId,
    },
    /// A rebuild is in a state that this program does not know.
    #[error(
        "projector_rebuilds has the unknown state {state}: is another projector newer than this one?"
    )]
    UnknownState {
        /// The state.
        state: String,
    },
    /// A row of `projector_instances` holds what none of our programs writes.
    #[error("the row of {host} in projector_instances cannot be read: delete it")]
    Instance {
        /// The instance's host and process.
        host: String,
    },
    /// The tables of a projection and its bookkeeping do not belong together.
    #[error("projection {projection}: {reason}")]
    Tables {
        /// The projection.
        projection: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A table cannot take part in a transaction.
    #[error(
        "table {table} has engine {engine}, whose changes cannot be undone: \
         use ENGINE = InnoDB in tables.sql"
    )]
    Engine {
        /// The table.
        table: String,
        /// Its engine.
        engine: String,
    },
    /// There may be no scratch database.
    #[error(
        "this login may not make a scratch database to try the SQL in: \
         GRANT ALL ON `projector\\_check\\_%`.* to it, or use --offline"
    )]
    NoScratch,
    /// Rows cannot be told apart.
    #[error("table {table} has no primary key, so its rows cannot be compared")]
    NoPrimaryKey {
        /// The table.
        table: String,
    },
    /// There may be no database beside the read models.
    #[error("this login may not make the database {database}: GRANT ALL ON `{database}`.* to it")]
    NoDatabase {
        /// The database.
        database: String,
    },
    /// Nobody knows from which files the tables in service were built.
    #[error(
        "a rebuild of {projection} was interrupted after it had put other tables in service: start a \
         projector with the files that it was called with, or `projector rebuild {projection}` again, \
         which ends it"
    )]
    SwapNotNoted {
        /// The projection.
        projection: String,
    },
    /// Another migrator did not end in time.
    #[error("another `projector migrate` is running on this database: wait until it has ended")]
    OtherMigrator,
    /// A migration could not be applied.
    #[error("the migration of the read models failed")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// A statement lost against another transaction, or its server went away. Trying again helps.
    #[error("{operation} in MySQL has to be tried again")]
    Transient {
        /// What was being done.
        operation: &'static str,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// Another instance moved a stream meanwhile. Trying again helps.
    #[error("another instance applied events of the same streams; the batch is tried again")]
    Overtaken,
    /// The statement of a handler was refused.
    #[error(transparent)]
    Refused(Refusal),
    /// Another statement failed.
    #[error("{operation} in MySQL failed")]
    Statement {
        /// What was being done.
        operation: &'static str,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
}

/// A statement of a handler that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The handler's file.
    pub file: PathBuf,
    /// The line of the statement.
    pub line: u64,
    /// The column of the statement.
    pub column: u64,
    /// MySQL's error number; 0 when it was not MySQL that refused.
    pub number: u16,
    /// MySQL's message, without values from the event.
    pub message: String,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, number, message } = self;
        write!(f, "{}:{line}:{column}: ", file.display())?;
        match number {
            0 => f.write_str(message),
            _ => write!(f, "MySQL refused the statement: {message} ({number})"),
        }
    }
}

impl Error {
    /// Whether trying again cannot help until somebody changes the configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url | Self::Login { .. })
    }

    /// Whether trying again can help without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Timeout { .. }
                | Self::Transient { .. }
                | Self::Overtaken
        )
    }

    /// An error of one of our own statements.
    pub(crate) fn of(operation: &'static str, source: sqlx::Error) -> Self {
        match number(&source) {
            Some(ER_NO_SUCH_TABLE) => Self::NoTable { operation, source },
            Some(number) if !is_transient(number) => Self::Statement { operation, source },
            _ => Self::Transient { operation, source },
        }
    }

    /// A row of ours that cannot be read.
    pub(crate) fn row(table: &str, key: &str, source: InvalidId) -> Self {
        Self::Row { table: table.to_owned(), key: key.to_owned(), source }
    }

    /// A statement found another number of rows than its directive says.
    pub(crate) fn unexpected_rows(statement: &Statement, found: u64, wanted: u64) -> Self {
        let message = format!("found {found} rows, and its directive says rows = {wanted}");
        Self::refused(statement, 0, message)
    }

    fn refused(statement: &Statement, number: u16, message: String) -> Self {
        let Statement { file, line, column, .. } = statement;
        let file = file.to_path_buf();
        Self::Refused(Refusal { file, line: *line, column: *column, number, message })
    }

    /// An error of a handler's statement.
    pub(crate) fn of_handler(statement: &Statement, source: sqlx::Error) -> Self {
        Self::classified(source, |number, message| Self::refused(statement, number, message))
    }

    /// An error of a statement of a projection in Rust.
    pub(crate) fn of_code(source: sqlx::Error) -> Self {
        let (file, line, column) = (PathBuf::new(), 0, 0);
        Self::classified(source, |number, message| {
            Self::Refused(Refusal { file, line, column, number, message })
        })
    }

    fn classified(source: sqlx::Error, refused: impl FnOnce(u16, String) -> Self) -> Self {
        match (&source, number(&source)) {
            (sqlx::Error::Database(error), Some(number)) if !is_transient(number) => {
                refused(number, without_values(number, error.message()))
            }
            (sqlx::Error::Encode(_) | sqlx::Error::Protocol(_), _) => {
                refused(0, "a value cannot be sent to MySQL".to_owned())
            }
            _ => Self::Transient { operation: "applying an event", source },
        }
    }
}

/// MySQL's error number.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>())
        .map(MySqlDatabaseError::number)
}

/// MySQL quotes values in its messages; only names of its own may reach a log.
fn without_values(number: u16, message: &str) -> String {
    // Wrong column count, unknown column or table, syntax: they quote the handler, not the event.
    let about_handler = matches!(
        number,
        ER_BAD_FIELD_ERROR | ER_PARSE_ERROR | ER_WRONG_VALUE_COUNT_ON_ROW | ER_NO_SUCH_TABLE
    );
    let (Some(first), Some(last)) = (message.find('\''), message.rfind('\'')) else {
        return message.to_owned();
    };
    let before = &message[..first];
    let names = ["column", "key", "constraint", "table", "field", "function"];
    let last_word = before.trim_end().rsplit(' ').next().unwrap_or_default().to_lowercase();
    let only_a_name = names.contains(&last_word.as_str()) && message.matches('\'').count() == 2;
    if about_handler || only_a_name {
        return message.to_owned();
    }
    // "Duplicate entry 'value' for key 'name'": the name is last, whatever the value holds.
    let after = match message.rfind("' for ") {
        Some(end) if end > first => &message[end..],
        _ => &message[last..],
    };
    format!("{before}'…{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_do_not_reach_the_log() {
        for (number, message, shown) in [
            (
                1062,
                "Duplicate entry 'alice@example.org' for key 'orders.PRIMARY'",
                "Duplicate entry '…' for key 'orders.PRIMARY'",
            ),
            (
                1062,
                "Duplicate entry 'it's' for key 'mine' for key 'orders.PRIMARY'",
                "Duplicate entry '…' for key 'orders.PRIMARY'",
            ),
            (
                1292,
                "Incorrect datetime value: '2026-13-01' for column 'paid_at' at row 1",
                "Incorrect datetime value: '…' for column 'paid_at' at row 1",
            ),
            (
                1292,
                "Truncated incorrect DOUBLE value: 'a'b'c'",
                "Truncated incorrect DOUBLE value: '…'",
            ),
            (1048, "Column 'name' cannot be null", "Column 'name' cannot be null"),
            (
                1406,
                "Data too long for column 'name' at row 1",
                "Data too long for column 'name' at row 1",
            ),
            (1054, "Unknown column 'nam' in 'field list'", "Unknown column 'nam' in 'field list'"),
            (1365, "Division by 0", "Division by 0"),
        ] {
            assert_eq!(without_values(number, message), shown);
        }
    }
}
