//! One connection to MySQL.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::timeout;

use crate::Error;
use crate::error::number;
use crate::error_codes::{
    ER_ACCESS_DENIED_ERROR, ER_ACCESS_DENIED_NO_PASSWORD_ERROR, ER_BAD_DB_ERROR,
    ER_DBACCESS_DENIED_ERROR,
};

/// How long a connection may take to open, with login.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long one statement may take: so long does it take to notice a server that went silent. Longer
/// than the lock wait, so that the server gives up first.
pub(crate) const STATEMENT_LIMIT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is tried before it is used: the server closes it after
/// `wait_timeout`, so that a dead projector's locks do not outlive it by much.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// Handlers and bookkeeping are prepared once per connection.
const PREPARED_STATEMENTS: usize = 1_000;

/// Session variables that effects and bookkeeping depend on, with what they must be.
const SETTINGS: [(&str, &str); 6] = [
    ("transaction_isolation", "READ-COMMITTED"),
    // The defaults of MySQL 9, and an error for every value that a column cannot hold.
    (
        "sql_mode",
        "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,\
         ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION",
    ),
    ("time_zone", "+00:00"),
    ("innodb_lock_wait_timeout", "3"),
    ("lock_wait_timeout", "3"),
    ("wait_timeout", "60"),
];

/// How to reach the read models.
#[derive(Clone)]
pub struct Options {
    connect: MySqlConnectOptions,
    address: String,
}

impl Options {
    /// Takes a URL such as `mysql://user:password@host:3306/database?ssl-mode=VERIFY_IDENTITY`.
    ///
    /// # Errors
    ///
    /// [`Error::Url`] when the URL cannot be used.
    pub fn parse(url: &SecretString) -> Result<Self, Error> {
        let connect = MySqlConnectOptions::from_str(url.expose_secret())
            .map_err(|_quotes_the_url| Error::Url)?
            // The server's own dialect, so that a handler means what it means elsewhere.
            .pipes_as_concat(false)
            .statement_cache_capacity(PREPARED_STATEMENTS)
            .disable_statement_logging();
        let database = connect.get_database().ok_or(Error::Url)?;
        let address = format!("{}:{}/{database}", connect.get_host(), connect.get_port());
        Ok(Self { connect, address })
    }

    /// The same server with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        let connect = self.connect.clone().database(database);
        let address = format!("{}:{}/{database}", connect.get_host(), connect.get_port());
        Self { connect, address }
    }

    /// Host, port and database, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// One connection, with settings that were read back.
///
/// After an error that is not [`Error::Refused`], drop it and connect anew.
pub struct Session {
    pub(crate) connection: MySqlConnection,
    pub(crate) used: Instant,
    /// What it owns. MySQL counts how often a lock is taken, and frees it when it is given up as often.
    pub(crate) owned: HashSet<String>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let limit = CONNECT_LIMIT;
        let connection = timeout(limit, MySqlConnection::connect_with(&options.connect))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "connecting", limit })?
            .map_err(|source| connect_error(options, source))?;
        let mut session = Self { connection, used: Instant::now(), owned: HashSet::new() };
        session.settle().await?;
        Ok(session)
    }

    /// This session, or a new one when it no longer works.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn or_new(mut self, options: &Options) -> Result<Self, Error> {
        let in_doubt = self.used.elapsed() >= IDLE_LIMIT;
        if in_doubt && within("a ping", self.connection.ping()).await.is_err() {
            return Self::connect(options).await;
        }
        Ok(self)
    }

    /// Keeps the server from ending an idle session, with the locks that it has.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn ping(&mut self) -> Result<(), Error> {
        within("a ping", self.connection.ping()).await
    }

    /// Says goodbye to the server.
    pub async fn close(self) {
        // Whatever the answer, the connection is gone.
        drop(timeout(Duration::from_secs(1), self.connection.close()).await);
    }

    /// Sets the session variables and reads them back: a proxy or a server may not follow.
    async fn settle(&mut self) -> Result<(), Error> {
        let assignments: Vec<_> = SETTINGS
            .iter()
            .map(|(name, value)| match value.parse::<u32>() {
                Ok(number) => format!("{name} = {number}"),
                Err(_) => format!("{name} = '{value}'"),
            })
            .collect();
        let set = sqlx::AssertSqlSafe(format!("SET SESSION {}", assignments.join(", ")));
        within("setting session variables", sqlx::raw_sql(set).execute(&mut self.connection))
            .await?;
        let columns: Vec<_> =
            SETTINGS.iter().map(|(name, _)| format!("CAST(@@SESSION.{name} AS CHAR)")).collect();
        let read = sqlx::AssertSqlSafe(format!("SELECT {}", columns.join(", ")));
        let query = sqlx::query(read).persistent(false);
        let row =
            within("reading session variables", query.fetch_one(&mut self.connection)).await?;
        for (column, (name, wanted)) in SETTINGS.into_iter().enumerate() {
            let found: String = row
                .try_get(column)
                .map_err(|error| Error::of("reading session variables", error))?;
            if found != wanted {
                return Err(Error::Setting { name, found, wanted });
            }
        }
        Ok(())
    }
}

/// How a row becomes a type whose fields are named as its columns.
macro_rules! from_row {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl sqlx::FromRow<'_, sqlx::mysql::MySqlRow> for $type {
            fn from_row(row: &sqlx::mysql::MySqlRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: sqlx::Row::try_get(row, stringify!($field))?),+ })
            }
        }
    };
}
pub(crate) use from_row;

/// Awaits one of our own statements, with a deadline.
pub(crate) async fn within<T>(
    operation: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(STATEMENT_LIMIT, statement).await {
        Ok(result) => result.map_err(|source| Error::of(operation, source)),
        Err(_elapsed) => Err(Error::Timeout { operation, limit: STATEMENT_LIMIT }),
    }
}

fn connect_error(options: &Options, source: sqlx::Error) -> Error {
    let address = options.address.clone();
    let refused = matches!(
        number(&source),
        Some(
            ER_DBACCESS_DENIED_ERROR
                | ER_ACCESS_DENIED_ERROR
                | ER_BAD_DB_ERROR
                | ER_ACCESS_DENIED_NO_PASSWORD_ERROR
        )
    );
    if refused || matches!(source, sqlx::Error::Configuration(_)) {
        Error::Login { address, source }
    } else {
        Error::Unreachable { address, source }
    }
}
