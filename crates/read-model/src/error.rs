//! The failures of MySQL, divided by the caller's possible reactions.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

use domain_events::InvalidId;
use projection::Statement;

use crate::error_codes::{ER_LOCK_WAIT_TIMEOUT, ER_NO_SUCH_TABLE, is_transient};
use crate::redaction::without_values;

/// A failure of MySQL. No variant carries a payload, a password or a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is not valid. No connection was attempted.
    #[error("the MySQL URL is not valid: expected mysql://user:password@host:port/database")]
    Url,
    /// The server, or the network to it, is not available.
    #[error("MySQL at {address} cannot be reached")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// The error of the network or the server.
        #[source]
        source: sqlx::Error,
    },
    /// The server refused the user, the password or the database.
    #[error("MySQL at {address} refused the login: check user, password and database")]
    Login {
        /// Host, port and database.
        address: String,
        /// The error of the server.
        #[source]
        source: sqlx::Error,
    },
    /// The server is a replica, or was made read-only.
    #[error(
        "MySQL at {address} is read-only: a replica, or a primary that was demoted. The URL must lead to the primary, \
         or name all hosts, separated by commas"
    )]
    ReadOnly {
        /// Host, port and database.
        address: String,
    },
    /// A session variable has another value than the one that this program has set.
    #[error("MySQL has {name} = {found}, but this program needs {wanted}")]
    Setting {
        /// The session variable.
        name: &'static str,
        /// The value that was read back.
        found: String,
        /// The value that was set.
        wanted: &'static str,
    },
    /// The server did not answer in time. The connection must not be used again.
    #[error("{operation} in MySQL gave no answer within {limit:?}")]
    Timeout {
        /// The operation, such as `reading the checkpoint`.
        operation: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// A projection is not registered in MySQL, or one of its tables is missing.
    #[error("{missing} is missing in MySQL: run `projector migrate`")]
    NotMigrated {
        /// The table or projection.
        missing: String,
    },
    /// One of this program's own statements names a missing table.
    #[error("{operation} in MySQL failed because a table is missing: run `projector migrate`")]
    NoTable {
        /// The operation, such as `reading the checkpoint`.
        operation: &'static str,
        /// The error of the server.
        #[source]
        source: sqlx::Error,
    },
    /// The version of a projection's bookkeeping is older than this program needs.
    #[error(
        "the bookkeeping of {projection} has version {found}, and this program needs {needed}: run \
         `projector migrate`"
    )]
    OutdatedBookkeeping {
        /// The projection.
        projection: String,
        /// The recorded version; 0 if there is none.
        found: i64,
        /// The lowest version that suffices.
        needed: i64,
    },
    /// The version of the tables `projector_…` is older than this program needs.
    #[error(
        "the tables projector_… in MySQL have version {found}, and this program needs {needed}: run \
         `projector migrate`"
    )]
    Outdated {
        /// The recorded version; 0 if there is none.
        found: i64,
        /// The lowest version that suffices.
        needed: i64,
    },
    /// A row of the bookkeeping has a value that this program never writes.
    #[error("row {key} of table {table} has an invalid value: was it changed by hand?")]
    Row {
        /// The table.
        table: String,
        /// The key of the row.
        key: String,
        /// The reason.
        #[source]
        source: InvalidId,
    },
    /// A rebuild has a state that this program does not know.
    #[error(
        "projector_rebuilds has the unknown state {state}: does a newer projector use this database?"
    )]
    UnknownState {
        /// The state.
        state: String,
    },
    /// A row of `projector_instances` has a value that this program never writes.
    #[error("the row of {host} in projector_instances has an invalid value: delete the row")]
    Instance {
        /// The host and process of the instance.
        host: String,
    },
    /// A row of `projector_reports` has a value that this program does not know.
    #[error(
        "the row of {host} in projector_reports cannot be read: does a newer projector use this database?"
    )]
    Report {
        /// The host and process of the projector.
        host: String,
    },
    /// The login may not see locks.
    #[error(
        "this login may not see which session holds a lock: GRANT SELECT ON performance_schema.* to it"
    )]
    LocksHidden,
    /// The tables of a projection do not match its bookkeeping or its files.
    #[error("projection {projection}: {reason}")]
    Tables {
        /// The projection.
        projection: String,
        /// The problem, and its solution.
        reason: String,
    },
    /// The engine of a table does not support transactions.
    #[error(
        "table {table} has the engine {engine}, which has no transactions: \
         use ENGINE = InnoDB in tables.sql"
    )]
    Engine {
        /// The table.
        table: String,
        /// Its engine.
        engine: String,
    },
    /// The login may not create a scratch database.
    #[error(
        "this login may not create a scratch database for the check: \
         GRANT ALL ON `projector\\_check\\_%`.* to it, or use --offline"
    )]
    NoScratch,
    /// A comparison needs a primary key to match rows.
    #[error("table {table} has no primary key, so its rows cannot be compared")]
    NoPrimaryKey {
        /// The table.
        table: String,
    },
    /// The login may not create a database for a rebuild.
    #[error("this login may not create the database {database}: GRANT ALL ON `{database}`.* to it")]
    NoDatabase {
        /// The database.
        database: String,
    },
    /// A rebuild was interrupted between its swap of the tables and recording it. The files from which the
    /// tables in service were built are not recorded.
    #[error(
        "a rebuild of {projection} was interrupted after it had put other tables in service: to complete \
         it, start a projector with the files of the rebuild, or run `projector rebuild start \
         {projection}` again"
    )]
    SwapNotRecorded {
        /// The projection.
        projection: String,
    },
    /// The stored files of a projection cannot be read.
    #[error(
        "the files of {projection} in the table projector_definitions cannot be read: the row was changed \
         by hand"
    )]
    StoredFiles {
        /// The projection.
        projection: String,
    },
    /// A rebuild or a rollback is under way: its tables may already hold the effect of the event.
    #[error(
        "a rebuild of {projection} is under way, so no event can be skipped: wait until it ends, or run \
         `projector rebuild cancel {projection}`"
    )]
    SkipDuringRebuild {
        /// The projection.
        projection: String,
    },
    /// Another migrator did not finish in time.
    #[error("another `projector migrate` is running on this database: wait until it has finished")]
    OtherMigrator,
    /// A migration of the tables failed.
    #[error("the migration of the read models failed")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// A statement conflicted with another transaction, or the server became unavailable. A retry can
    /// succeed.
    #[error("{operation} in MySQL failed temporarily; a retry can succeed")]
    Transient {
        /// The operation, such as `reading the checkpoint`.
        operation: &'static str,
        /// The error of the server.
        #[source]
        source: sqlx::Error,
    },
    /// Another instance has applied events of the same streams since they were read. A retry can succeed.
    #[error("another instance has applied events of the same streams; the batch is retried")]
    Overtaken,
    /// The server refused the statement of a handler.
    #[error(transparent)]
    Refused(Refusal),
    /// One of this program's own statements failed.
    #[error("{operation} in MySQL failed")]
    Statement {
        /// The operation, such as `reading the checkpoint`.
        operation: &'static str,
        /// The error of the server.
        #[source]
        source: sqlx::Error,
    },
}

/// A statement of a handler that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The file of the handler.
    pub file: PathBuf,
    /// The line of the statement, from 1; 0 for a projection in Rust.
    pub line: u64,
    /// The column of the statement, from 1, in characters; 0 for a projection in Rust.
    pub column: u64,
    /// MySQL's error number; 0 if this program refused the statement.
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
    /// Whether a retry is pointless until a person changes the configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url | Self::Login { .. })
    }

    /// Whether a retry can succeed without a person's intervention.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::ReadOnly { .. }
                | Self::Timeout { .. }
                | Self::Transient { .. }
                | Self::Overtaken
        )
    }

    /// Whether a statement has waited for a lock for too long.
    pub fn is_lock_wait(&self) -> bool {
        matches!(self, Self::Transient { source, .. } if number(source) == Some(ER_LOCK_WAIT_TIMEOUT))
    }

    /// The error of one of this program's own statements.
    pub(crate) fn of(operation: &'static str, source: sqlx::Error) -> Self {
        match number(&source) {
            Some(ER_NO_SUCH_TABLE) => Self::NoTable { operation, source },
            Some(number) if !is_transient(number) => Self::Statement { operation, source },
            _ => Self::Transient { operation, source },
        }
    }

    /// The error of a bookkeeping row with an invalid value.
    pub(crate) fn row(table: &str, key: &str, source: InvalidId) -> Self {
        Self::Row { table: table.to_owned(), key: key.to_owned(), source }
    }

    /// The error of a statement that did not find as many rows as its directive requires.
    pub(crate) fn unexpected_rows(statement: &Statement, found: u64, wanted: u64) -> Self {
        let message = format!("rows = {found}, and its directive says rows = {wanted}");
        Self::refused(statement, 0, message)
    }

    fn refused(statement: &Statement, number: u16, message: String) -> Self {
        let Statement { file, line, column, .. } = statement;
        let file = file.to_path_buf();
        Self::Refused(Refusal { file, line: *line, column: *column, number, message })
    }

    /// The error of a handler's statement.
    pub(crate) fn of_handler(statement: &Statement, source: sqlx::Error) -> Self {
        Self::classified(source, |number, message| Self::refused(statement, number, message))
    }

    /// The error of a statement of a projection in Rust.
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
                refused(0, "a value cannot be encoded for MySQL".to_owned())
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
