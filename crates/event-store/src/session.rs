//! One connection to PostgreSQL.

use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, FromRow, Postgres, Transaction};
use tokio::time::timeout;

use crate::Error;

/// How long connecting may take, login included.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How much longer the client waits than the server's own limit, so that the server gives up first.
const GRACE: Duration = Duration::from_secs(1);

/// How long lanes may stay locked after their relay has stopped responding.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// Makes the planner use indexes. Right after a bulk load the statistics still describe an empty
/// table, and the planner would read and sort a million rows for one batch. Each of these queries has
/// an index in its order.
///
/// Before PostgreSQL 18, these settings make a plan look expensive, and PostgreSQL compiles an expensive
/// plan first (`jit`). That takes seconds of processor time for each batch.
const BY_INDEX: &str = ";
                 SET LOCAL enable_seqscan = off;
                 SET LOCAL enable_bitmapscan = off;
                 SET LOCAL enable_sort = off;
                 SET LOCAL jit = off";
/// Makes the planner read a page of a table in the order of an index, also where statistics describe an empty
/// table; a bitmap would read all of it before the first row. It
/// plans for the very parameters: one that leaves its condition out would otherwise hide the index that the
/// others can use.
const PAGE_BY_INDEX: &str = ";
                 SET LOCAL enable_seqscan = off;
                 SET LOCAL enable_bitmapscan = off;
                 SET LOCAL plan_cache_mode = force_custom_plan;
                 SET LOCAL jit = off";
/// The same for a page that is joined to as many values, by hash or merge.
const PAGE_BY_HASH: &str = ";
                 SET LOCAL enable_seqscan = off;
                 SET LOCAL enable_bitmapscan = off;
                 SET LOCAL enable_nestloop = off;
                 SET LOCAL plan_cache_mode = force_custom_plan;
                 SET LOCAL jit = off";
/// Makes the planner join large tables by hash or merge. With statistics from before a bulk load it
/// would expect few rows, and read the second table once for each row of the first.
const NO_NESTED_LOOPS: &str = ";
                 SET LOCAL enable_nestloop = off;
                 SET LOCAL jit = off";

/// How to connect to the event store, and how long to wait for it.
#[derive(Clone)]
pub struct Options {
    pub(crate) hosts: Vec<Host>,
    address: String,
    statement_limit: Duration,
    idle_limit: Duration,
}

/// One host of the cluster.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) connect: PgConnectOptions,
    /// Host, port and database, for messages.
    address: String,
}

impl Options {
    /// Takes a URL such as `postgres://user:password@host:5432/database?sslmode=verify-full`. It may name several
    /// hosts, separated by commas: connections go to the primary among them.
    ///
    /// `pg_stat_activity` shows the `application_name`.
    ///
    /// # Errors
    ///
    /// [`Error::Url`] when the URL cannot be parsed.
    pub fn parse(url: &SecretString, application_name: &str) -> Result<Self, Error> {
        let host = |url: String| {
            let connect = PgConnectOptions::from_str(&url)
                .map_err(|_quotes_the_url| Error::Url)?
                .application_name(application_name)
                // Poolers refuse this parameter. It affects floats in text form only: we read none.
                .extra_float_digits(None)
                .disable_statement_logging();
            let database = connect.get_database().unwrap_or(connect.get_username());
            let address = format!("{}:{}/{database}", connect.get_host(), connect.get_port());
            Ok(Host { connect, address })
        };
        let hosts = hosts::each(url.expose_secret()).into_iter().map(host);
        let hosts = hosts.collect::<Result<Vec<_>, Error>>()?;
        let addresses: Vec<&str> = hosts.iter().map(|host| &*host.address).collect();
        Ok(Self {
            address: addresses.join(", "),
            hosts,
            statement_limit: Duration::from_secs(10),
            idle_limit: Duration::from_secs(15),
        })
    }

    /// How long one statement may take before the server cancels it. Default 10 s.
    #[must_use]
    pub fn statement_limit(mut self, limit: Duration) -> Self {
        self.statement_limit = limit;
        self
    }

    /// How long a claim may be idle while its events are published. Then the server ends the
    /// connection, which unlocks the lanes. Default 15 s.
    #[must_use]
    pub fn idle_limit(mut self, limit: Duration) -> Self {
        self.idle_limit = limit;
        self
    }

    /// How long one statement of a claim may take: what the idle limit leaves of [`LOCK_LIMIT`].
    fn claim_statement_limit(&self) -> Duration {
        let rest = LOCK_LIMIT.saturating_sub(self.idle_limit).max(Duration::from_secs(1));
        self.statement_limit.min(rest)
    }

    /// Host, port and database of each host, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// One connection to the primary.
///
/// After any error, drop it and connect again. Dropping closes the socket, and the server rolls back.
pub struct Session {
    pub(crate) connection: PgConnection,
    /// Begins a transaction for one statement.
    begin: String,
    /// Begins a transaction that locks lanes.
    begin_claim: String,
    pub(crate) client_limit: Duration,
}

impl Session {
    /// Connects, and checks that the server is the primary and enforces the limits of a claim.
    ///
    /// # Errors
    ///
    /// [`Error::Login`] when the server refuses user, password or database, [`Error::NotPrimary`],
    /// [`Error::LimitsIgnored`], and [`Error::Unreachable`] or [`Error::Timeout`] for temporary
    /// failures.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let mut failed = None;
        for (host, limit) in hosts::shuffled(&options.hosts, CONNECT_LIMIT) {
            match Self::connect_to(host, options, limit).await {
                Ok(session) => return Ok(session),
                Err(error) => hosts::keep(&mut failed, error, is_standby),
            }
        }
        Err(failed.unwrap_or(Error::Url))
    }

    async fn connect_to(host: &Host, options: &Options, limit: Duration) -> Result<Self, Error> {
        let connection = timeout(limit, PgConnection::connect_with(&host.connect))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "connecting", limit })?
            .map_err(|source| connect_error(host, source))?;
        let statement_ms = options.statement_limit.as_millis();
        let claim_statement_ms = options.claim_statement_limit().as_millis();
        let idle_ms = options.idle_limit.as_millis();
        let mut session = Self {
            connection,
            begin: format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED;
                 SET LOCAL statement_timeout = {statement_ms}"
            ),
            // tcp_user_timeout ends a connection whose peer accepts no data, for example in the
            // middle of a large result. The other two limits do not apply there.
            begin_claim: format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED;
                 SET LOCAL statement_timeout = {claim_statement_ms};
                 SET LOCAL idle_in_transaction_session_timeout = {idle_ms};
                 SET LOCAL tcp_user_timeout = {idle_ms}{BY_INDEX}"
            ),
            client_limit: options.statement_limit + GRACE,
        };
        session.require_primary(host).await?;
        session.require_limits(options).await?;
        Ok(session)
    }

    /// Ends the session properly, so that the server does not log a lost connection.
    pub async fn close(self) {
        // The connection ends whatever the server answers.
        drop(timeout(GRACE, self.connection.close()).await);
    }

    async fn require_primary(&mut self, host: &Host) -> Result<(), Error> {
        let query = sqlx::query_scalar(
            "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean",
        );
        let standby: bool = within(
            self.client_limit,
            "checking that the server is the primary",
            query.fetch_one(&mut self.connection),
        )
        .await?;
        if standby { Err(Error::NotPrimary { address: host.address.clone() }) } else { Ok(()) }
    }

    /// Checks that the server enforces the limits of a claim. A pooler or a fork of PostgreSQL might
    /// ignore them; the lanes of a relay that hangs would then stay locked.
    async fn require_limits(&mut self, options: &Options) -> Result<(), Error> {
        let limit = self.client_limit;
        let mut transaction = self.begin_claim().await?;
        let read = sqlx::query_as(
            "SELECT (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'),
                    (SELECT setting::bigint FROM pg_settings
                     WHERE name = 'idle_in_transaction_session_timeout')",
        );
        let found: (i64, i64) =
            within(limit, "reading the limits of a claim", read.fetch_one(&mut *transaction))
                .await?;
        within(limit, "reading the limits of a claim", transaction.rollback()).await?;
        let wanted = [options.claim_statement_limit(), options.idle_limit]
            .map(|limit| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
        if wanted == [found.0, found.1] { Ok(()) } else { Err(Error::LimitsIgnored) }
    }

    pub(crate) fn client_limit(&self) -> Duration {
        self.client_limit
    }

    /// Begins a transaction that locks lanes.
    pub(crate) async fn begin_claim(&mut self) -> Result<Transaction<'_, Postgres>, Error> {
        let begin = sqlx::AssertSqlSafe(self.begin_claim.clone());
        let limit = self.client_limit;
        within(limit, "opening a transaction", self.connection.begin_with(begin)).await
    }

    /// Runs one statement in a transaction of its own, under the server's statement timeout.
    pub(crate) async fn run<T>(
        &mut self,
        mode: Mode,
        operation: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let begin = format!("{}{}", self.begin, mode.planner());
        let connection = &mut self.connection;
        let run = async {
            let mut transaction = connection.begin_with(sqlx::AssertSqlSafe(begin)).await?;
            let rows = query.fetch_all(&mut *transaction).await?;
            if mode.writes() {
                transaction.commit().await?;
            } else {
                transaction.rollback().await?;
            }
            rows.iter().map(T::from_row).collect()
        };
        within(self.client_limit, operation, run).await
    }
}

/// How a statement finds its rows, and whether it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reads a few rows by an index.
    Read,
    /// Reads a page of a table.
    Page,
    /// Reads a page of a table, and compares it with many values.
    PageWithValues,
    /// Reads much of a table, and compares it with much of another.
    Scan,
    /// Finds a few rows by an index, and writes.
    WriteByIndex,
    /// Reads a page of a table, and writes.
    WritePage,
    /// Writes, and leaves the plan to PostgreSQL.
    Write,
}

impl Mode {
    /// Settings of the planner for the transaction.
    fn planner(self) -> &'static str {
        match self {
            Self::Read | Self::WriteByIndex => BY_INDEX,
            Self::Page | Self::WritePage => PAGE_BY_INDEX,
            Self::PageWithValues => PAGE_BY_HASH,
            Self::Scan => NO_NESTED_LOOPS,
            Self::Write => "",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::WriteByIndex | Self::WritePage | Self::Write)
    }
}

/// Awaits a statement for at most `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match timeout(limit, statement).await {
        Ok(result) => result.map_err(|source| Error::statement(operation, source)),
        Err(_elapsed) => Err(Error::Timeout { operation, limit }),
    }
}

/// Whether a host is a standby: among several hosts, that is no news.
pub(crate) fn is_standby(error: &Error) -> bool {
    matches!(error, Error::NotPrimary { .. })
}

pub(crate) fn connect_error(host: &Host, source: sqlx::Error) -> Error {
    let address = host.address.clone();
    let code = source.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // invalid_authorization_specification, invalid_password, invalid_catalog_name, and
    // insufficient_privilege: no CONNECT privilege.
    let refused = matches!(code.as_deref(), Some("28000" | "28P01" | "3D000" | "42501"));
    if refused || matches!(source, sqlx::Error::Configuration(_)) {
        Error::Login { address, source }
    } else {
        Error::Unreachable { address, source }
    }
}
