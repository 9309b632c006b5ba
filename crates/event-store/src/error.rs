//! Errors of the event store, distinguished by what the caller can do about them.

use std::time::Duration;

use domain_events::InvalidId;

/// A failure of the event store or the outbox.
///
/// No variant contains a payload, a password or a URL. The text of [`Error::NotMigrated`] names the
/// command of this workspace that applies the migrations.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be parsed. No connection was attempted.
    #[error(
        "the PostgreSQL URL is not valid: expected postgres://user:password@host:port/database"
    )]
    Url,
    /// The server, or the network to it, is down.
    #[error("PostgreSQL at {address} cannot be reached")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// The error of the network or the server.
        #[source]
        source: sqlx::Error,
    },
    /// The server refused the user, the password or the database.
    #[error("PostgreSQL at {address} refused the login: check user, password and database")]
    Login {
        /// Host, port and database.
        address: String,
        /// The server's answer.
        #[source]
        source: sqlx::Error,
    },
    /// The server is a standby, or read-only.
    #[error(
        "PostgreSQL at {address} is a standby or read-only: the URL must lead to the primary, or name all hosts, separated by commas"
    )]
    NotPrimary {
        /// Host, port and database.
        address: String,
    },
    /// The tables are missing, or are older than this program.
    #[error("the event store in PostgreSQL is not migrated: run `outbox-relay migrate`")]
    NotMigrated,
    /// A logical replication brings rows from another server.
    #[error(
        "the event store in PostgreSQL still comes from another server, through the subscription \
         {subscription}: when everything has arrived, bring the sequences forward and drop the \
         subscription (OPERATIONS.md, \"Upgrading PostgreSQL\")"
    )]
    Subscriber {
        /// The name of the subscription.
        subscription: String,
    },
    /// The next events would get positions that are in use.
    #[error(
        "events_position_seq in PostgreSQL is at {last}, but there are events up to position \
         {highest}: stop appending, and bring the sequences forward (OPERATIONS.md, \
         \"Upgrading PostgreSQL\")"
    )]
    PositionsBehind {
        /// The highest position of an event.
        highest: i64,
        /// The last position that was given out, according to the sequence.
        last: i64,
    },
    /// A migration could not be applied.
    #[error("the migration of the event store failed")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The server did not answer in time. The connection must not be used again.
    #[error("PostgreSQL gave no answer within {limit:?} ({operation})")]
    Timeout {
        /// The operation.
        operation: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// `append_to_stream` refused the events. `migrations/postgres/README.md` lists the SQLSTATEs.
    #[error("{message} ({sqlstate})")]
    Refused {
        /// `ES001` to `ES007`, or a code of class 22 or 23.
        sqlstate: String,
        /// The function's message.
        message: String,
    },
    /// A statement failed.
    #[error("{operation} in PostgreSQL failed")]
    Statement {
        /// The operation.
        operation: &'static str,
        /// The server's answer.
        #[source]
        source: sqlx::Error,
    },
    /// A row violates a rule that a constraint enforces.
    #[error("{table} row {id} is not a valid event: check whether a constraint was dropped")]
    Row {
        /// The table.
        table: &'static str,
        /// Its primary key.
        id: i64,
        /// The violated rule.
        #[source]
        source: InvalidId,
    },
    /// The server ignores the limits of a transaction.
    #[error(
        "PostgreSQL ignores SET LOCAL statement_timeout and idle_in_transaction_session_timeout: \
         check whether a pooler in statement mode is in between"
    )]
    LimitsIgnored,
    /// No stream waits for the event.
    #[error("no stream waits for event {id}")]
    NotWaiting {
        /// The row in the outbox.
        id: i64,
    },
    /// Another program changed rows of lanes that this session had locked.
    #[error(
        "only {marked} of {expected} published outbox rows could be marked: \
         another program changed or deleted the others"
    )]
    NotMarked {
        /// How many rows were to be marked.
        expected: u64,
        /// How many were marked.
        marked: u64,
    },
}

impl Error {
    /// Whether a retry cannot succeed until the configuration is changed.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url | Self::Login { .. })
    }

    /// Whether a retry may succeed: the server is down or busy, or another one is taking over.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::NotPrimary { .. }
            | Self::Subscriber { .. }
            | Self::PositionsBehind { .. } => true,
            Self::Statement { source, .. } => match source.as_database_error() {
                None => true,
                // Classes: connection exception, transaction rollback, insufficient resources, operator
                // intervention.
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
