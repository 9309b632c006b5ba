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

/// The longest time to open a connection, including the login.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The longest time for one statement, and so the time until a silent server is noticed. It exceeds
/// `innodb_lock_wait_timeout`, so that the server ends a wait for a lock first.
pub(crate) const STATEMENT_LIMIT: Duration = Duration::from_secs(5);
/// The longest time for a statement on whole tables, such as dropping or comparing them.
pub(crate) const LONG_LIMIT: Duration = Duration::from_mins(5);
/// A connection that was idle for longer gets a ping before its next use, because the server closes it
/// after `wait_timeout`. That setting is short so that the server soon releases the locks of a crashed
/// projector.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// The most prepared statements of one connection. It suffices for all handlers and the bookkeeping, which
/// are prepared once.
const PREPARED_STATEMENTS: usize = 1_000;

/// Session variables that effects and bookkeeping depend on, with their values. Durations are in seconds.
const SETTINGS: [(&str, &str); 6] = [
    ("transaction_isolation", "READ-COMMITTED"),
    // The defaults of MySQL 9 plus STRICT_ALL_TABLES: a value that a column cannot hold is an error.
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

/// The server, the login and the database of the read models.
#[derive(Clone)]
pub struct Options {
    hosts: Vec<Host>,
    address: String,
}

/// One host of the cluster.
#[derive(Clone)]
struct Host {
    connect: MySqlConnectOptions,
    /// Host, port and database, for messages.
    address: String,
}

impl Host {
    fn of(connect: MySqlConnectOptions) -> Result<Self, Error> {
        let database = connect.get_database().ok_or(Error::Url)?;
        let address = format!("{}:{}/{database}", connect.get_host(), connect.get_port());
        Ok(Self { connect, address })
    }
}

impl Options {
    /// Parses a URL such as `mysql://user:password@host:3306/database?ssl-mode=VERIFY_IDENTITY`. It may name
    /// several hosts, separated by commas: connections go to the one that can be written to.
    ///
    /// # Errors
    ///
    /// [`Error::Url`] when the URL is not valid.
    pub fn parse(url: &SecretString) -> Result<Self, Error> {
        let host = |url: String| {
            let connect = MySqlConnectOptions::from_str(&url)
                .map_err(|_quotes_the_url| Error::Url)?
                // The driver would set PIPES_AS_CONCAT, and `||` in a handler would mean something else than in
                // other clients.
                .pipes_as_concat(false)
                .statement_cache_capacity(PREPARED_STATEMENTS)
                .disable_statement_logging();
            Host::of(connect)
        };
        let hosts = hosts::each(url.expose_secret()).into_iter().map(host);
        Ok(Self::of(hosts.collect::<Result<_, _>>()?))
    }

    fn of(hosts: Vec<Host>) -> Self {
        let addresses: Vec<&str> = hosts.iter().map(|host| &*host.address).collect();
        Self { address: addresses.join(", "), hosts }
    }

    /// The same server with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        let with = |host: &Host| Host::of(host.connect.clone().database(database)).ok();
        Self::of(self.hosts.iter().filter_map(with).collect())
    }

    /// Host, port and database of each host, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// One connection whose session variables have been verified.
///
/// After any error except [`Error::Refused`], drop the session and open another one.
pub struct Session {
    pub(crate) connection: MySqlConnection,
    /// The time of the last use that is known to have succeeded.
    pub(crate) used: Instant,
    /// The locks that the session holds. MySQL counts repeated acquisitions of a lock and would need as
    /// many releases, so a lock that is already held is not acquired again.
    pub(crate) owned: HashSet<String>,
}

impl Session {
    /// Opens a connection and sets its session variables.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let is_replica = |error: &Error| matches!(error, Error::ReadOnly { .. });
        let mut failed = None;
        for (host, limit) in hosts::shuffled(&options.hosts, CONNECT_LIMIT) {
            match Self::connect_to(host, limit).await {
                Ok(session) => return Ok(session),
                Err(error) => hosts::keep(&mut failed, error, is_replica),
            }
        }
        Err(failed.unwrap_or(Error::Url))
    }

    async fn connect_to(host: &Host, limit: Duration) -> Result<Self, Error> {
        let connection = timeout(limit, MySqlConnection::connect_with(&host.connect))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "connecting", limit })?
            .map_err(|source| connect_error(host, source))?;
        let mut session = Self { connection, used: Instant::now(), owned: HashSet::new() };
        session.require_writable(host).await?;
        session.set_variables().await?;
        Ok(session)
    }

    /// Returns this session, or a new one if its connection was lost while idle.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn or_new(mut self, options: &Options) -> Result<Self, Error> {
        let may_be_closed = self.used.elapsed() >= IDLE_LIMIT;
        if may_be_closed && within("checking the connection", self.connection.ping()).await.is_err()
        {
            return Self::connect(options).await;
        }
        Ok(self)
    }

    /// Pings the server, which would otherwise close an idle session and release its locks after 60 s.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn ping(&mut self) -> Result<(), Error> {
        within("checking the connection", self.connection.ping()).await
    }

    /// Closes the connection.
    pub async fn close(self) {
        // Dropping the connection closes it even if the server does not answer.
        drop(timeout(Duration::from_secs(1), self.connection.close()).await);
    }

    /// Checks that the server takes writes. A replica and a demoted primary do not.
    async fn require_writable(&mut self, host: &Host) -> Result<(), Error> {
        let read = sqlx::query_scalar("SELECT @@GLOBAL.read_only OR @@GLOBAL.super_read_only");
        let read = read.persistent(false).fetch_one(&mut self.connection);
        let read_only: i64 = within("checking that the server is the primary", read).await?;
        if read_only == 0 { Ok(()) } else { Err(Error::ReadOnly { address: host.address.clone() }) }
    }

    /// Sets the session variables and reads them back, because a proxy may ignore the change.
    async fn set_variables(&mut self) -> Result<(), Error> {
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

/// Implements `FromRow` for a type whose fields have the names of the columns.
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

/// Awaits one of this program's own statements, for at most [`STATEMENT_LIMIT`].
pub(crate) async fn within<T>(
    operation: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(STATEMENT_LIMIT, statement).await {
        Ok(result) => result.map_err(|source| Error::of(operation, source)),
        Err(_elapsed) => Err(Error::Timeout { operation, limit: STATEMENT_LIMIT }),
    }
}

fn connect_error(host: &Host, source: sqlx::Error) -> Error {
    let address = host.address.clone();
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

/// Awaits a statement that may read many rows, for at most [`LONG_LIMIT`].
pub(crate) async fn within_minutes<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(LONG_LIMIT, statement).await {
        Ok(result) => result.map_err(|source| Error::of("comparing rows", source)),
        Err(_elapsed) => Err(Error::Timeout { operation: "comparing rows", limit: LONG_LIMIT }),
    }
}
