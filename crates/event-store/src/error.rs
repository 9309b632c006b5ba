//! What can go wrong with PostgreSQL, by what the caller can do about it.

use std::time::Duration;

use domain_events::InvalidId;

/// A failure of the event store or the outbox.
///
/// No variant carries a payload, a password or a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be used; nothing was tried.
    #[error(
        "the PostgreSQL URL is not valid: expected postgres://user:password@host:port/database"
    )]
    Url,
    /// There is no connection: the server is away, or the way to it.
    #[error("PostgreSQL at {address} cannot be reached")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// What the network or the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The server refused user, password or database.
    #[error("PostgreSQL at {address} refused the login: check user, password and database")]
    Login {
        /// Host, port and database.
        address: String,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The server is a standby, or read-only.
    #[error("PostgreSQL at {address} is a standby or read-only: the URL must lead to the primary")]
    NotPrimary {
        /// Host, port and database.
        address: String,
    },
    /// The tables are missing or belong to another version of this program.
    #[error("the event store in PostgreSQL is not migrated: run `outbox-relay migrate`")]
    NotMigrated,
    /// A migration could not be applied.
    #[error("the migration of the event store failed")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// No answer in time; the connection must not be used again.
    #[error("{operation} in PostgreSQL gave no answer within {limit:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// `append_to_stream` refused the events; the SQLSTATEs are documented with the function.
    #[error("{message} ({sqlstate})")]
    Refused {
        /// `ES001` to `ES007`, or of class 22 or 23.
        sqlstate: String,
        /// The function's message.
        message: String,
    },
    /// A statement failed.
    #[error("{operation} in PostgreSQL failed")]
    Statement {
        /// What was being done.
        operation: &'static str,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// A row breaks a rule that the tables enforce.
    #[error("{table} row {id} is not a valid event: was a constraint dropped?")]
    Row {
        /// The table.
        table: &'static str,
        /// Its primary key.
        id: i64,
        /// The rule.
        #[source]
        source: InvalidId,
    },
    /// The server does not apply the limits of a transaction.
    #[error(
        "PostgreSQL does not apply SET LOCAL statement_timeout and \
         idle_in_transaction_session_timeout: is there a pooler in statement mode?"
    )]
    LimitsIgnored,
    /// No stream waits for the event.
    #[error(
        "no stream waits for event {id}: `outbox-relay blocked list --all` shows those that do"
    )]
    NotWaiting {
        /// The row of the outbox.
        id: i64,
    },
    /// Rows that this session had locked were changed by somebody else.
    #[error("{expected} outbox rows were to be marked, but only {marked} were there")]
    NotMarked {
        /// How many rows were published.
        expected: u64,
        /// How many were found.
        marked: u64,
    },
}

impl Error {
    /// Whether trying again cannot help until somebody changes the configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url | Self::Login { .. })
    }

    /// Whether it may pass by itself: the server is away, or busy, or another one takes over.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::NotPrimary { .. } => true,
            Self::Statement { source, .. } => match source.as_database_error() {
                None => true,
                // Connections, rollbacks, resources, operators.
                Some(error) => error.code().is_some_and(|code| {
                    ["08", "40", "53", "57"].contains(&code.get(..2).unwrap_or_default())
                }),
            },
            _ => false,
        }
    }

    pub(crate) fn statement(operation: &'static str, source: sqlx::Error) -> Self {
        match source.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() {
            // undefined_table, undefined_function, undefined_column
            Some("42P01" | "42883" | "42703") => Self::NotMigrated,
            _ => Self::Statement { operation, source },
        }
    }
}
