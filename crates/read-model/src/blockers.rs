//! The sessions of MySQL that hold locks for which a projection waits.
//!
//! Their statements are shown as digests, which have no values.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, query_as};

use crate::error::number;
use crate::error_codes::{ER_DBACCESS_DENIED_ERROR, ER_TABLEACCESS_DENIED_ERROR};
use crate::session::{from_row, within};
use crate::{Error, Session};

/// The longest statement in a message, in characters.
const STATEMENT_MAX: usize = 160;

/// A session that holds a lock, and so keeps others waiting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Blocker {
    /// Its number in the process list; `None` for a prepared transaction (XA).
    pub session: Option<u64>,
    /// Its user.
    pub user: Option<String>,
    /// The host that it connects from.
    pub host: Option<String>,
    /// The program, if its driver says so.
    pub program: Option<String>,
    /// The digest of the statement that took the lock or, if that is not known any more, of its last one.
    pub statement: Option<String>,
    /// The tables whose rows it has locked, or that it holds.
    pub tables: String,
    /// Whether it holds the tables themselves, not only rows: as a reader whose transaction is open, or as one
    /// that changes them.
    pub whole_tables: bool,
    /// Since when: the begin of its transaction or, without one, of its last statement.
    pub since: DateTime<Utc>,
}

struct BlockerRow {
    session: Option<u64>,
    user: Option<String>,
    host: Option<String>,
    program: Option<String>,
    statement: Option<String>,
    tables: String,
    whole_tables: bool,
    seconds: f64,
}

from_row!(BlockerRow { session, user, host, program, statement, tables, whole_tables, seconds });

impl BlockerRow {
    fn blocker(self) -> Blocker {
        let Self { session, user, host, program, statement, tables, whole_tables, seconds } = self;
        let elapsed = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let since = Utc::now() - TimeDelta::from_std(elapsed).unwrap_or_default();
        Blocker { session, user, host, program, statement, tables, whole_tables, since }
    }
}

impl Blocker {
    /// What the session does.
    pub fn action(&self) -> String {
        let what = if self.whole_tables { "holds" } else { "has locked rows of" };
        let statement = self.statement.as_ref().map_or_else(String::new, |statement| {
            let short: String = statement.chars().take(STATEMENT_MAX).collect();
            let more = if short.len() < statement.len() { "…" } else { "" };
            format!(" ({short}{more})")
        });
        format!("{self} {what} {}{statement}", self.tables)
    }

    /// How to end it.
    pub fn remedy(&self) -> String {
        match self.session {
            None => "find it with XA RECOVER, and commit or roll it back".to_owned(),
            Some(session) => format!("end its transaction, or run KILL {session}"),
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let since = self.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        format!("{} since {since}: {}", self.action(), self.remedy())
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(session) = self.session else { return f.write_str("a prepared transaction") };
        let (user, host) = (self.user.as_deref(), self.host.as_deref());
        let (user, host) = (user.unwrap_or_default(), host.unwrap_or_default());
        write!(f, "MySQL session {session} ({user}@{host}")?;
        if let Some(program) = &self.program {
            write!(f, ", {program}")?;
        }
        f.write_str(")")
    }
}

/// Sessions for whose row locks others wait, without those that wait themselves.
const OF_ROWS: &str = "
    SELECT w.BLOCKING_THREAD_ID AS thread, MIN(l.EVENT_ID) AS event, l.OBJECT_NAME AS name, FALSE AS whole
    FROM performance_schema.data_lock_waits AS w
    JOIN performance_schema.data_locks AS l
      ON l.ENGINE_LOCK_ID = w.BLOCKING_ENGINE_LOCK_ID AND l.ENGINE = w.ENGINE
    WHERE l.OBJECT_SCHEMA = DATABASE() AND JSON_CONTAINS(?, JSON_QUOTE(l.OBJECT_NAME))
      AND w.BLOCKING_THREAD_ID NOT IN (
          SELECT REQUESTING_THREAD_ID FROM performance_schema.data_lock_waits)
    GROUP BY w.BLOCKING_THREAD_ID, l.OBJECT_NAME";

/// Sessions that hold tables for which others wait. One that only waits to change a table is no such session:
/// those that it waits for are.
const OF_TABLES: &str = "
    SELECT held.OWNER_THREAD_ID AS thread, MIN(held.OWNER_EVENT_ID) AS event, held.OBJECT_NAME AS name,
           TRUE AS whole
    FROM performance_schema.metadata_locks AS wanted
    JOIN performance_schema.metadata_locks AS held
      ON held.OBJECT_TYPE = wanted.OBJECT_TYPE AND held.OBJECT_SCHEMA = wanted.OBJECT_SCHEMA
     AND held.OBJECT_NAME = wanted.OBJECT_NAME AND held.OWNER_THREAD_ID <> wanted.OWNER_THREAD_ID
    WHERE wanted.OBJECT_TYPE = 'TABLE' AND wanted.OBJECT_SCHEMA = DATABASE()
      AND JSON_CONTAINS(?, JSON_QUOTE(wanted.OBJECT_NAME))
      AND wanted.LOCK_STATUS = 'PENDING' AND held.LOCK_STATUS = 'GRANTED'
      AND (wanted.LOCK_TYPE = 'EXCLUSIVE'
           OR held.LOCK_TYPE IN ('SHARED_NO_WRITE', 'SHARED_NO_READ_WRITE', 'EXCLUSIVE'))
      AND held.OWNER_THREAD_ID NOT IN (
          SELECT OWNER_THREAD_ID FROM performance_schema.metadata_locks WHERE LOCK_STATUS = 'PENDING')
    GROUP BY held.OWNER_THREAD_ID, held.OBJECT_NAME";

/// All other sessions that hold tables, whether or not anybody waits for them now.
const READERS: &str = "
    SELECT held.OWNER_THREAD_ID AS thread, MIN(held.OWNER_EVENT_ID) AS event, held.OBJECT_NAME AS name,
           TRUE AS whole
    FROM performance_schema.metadata_locks AS held
    WHERE held.OBJECT_TYPE = 'TABLE' AND held.OBJECT_SCHEMA = DATABASE()
      AND JSON_CONTAINS(?, JSON_QUOTE(held.OBJECT_NAME)) AND held.LOCK_STATUS = 'GRANTED'
      AND held.OWNER_THREAD_ID <> PS_CURRENT_THREAD_ID()
    GROUP BY held.OWNER_THREAD_ID, held.OBJECT_NAME";

impl Session {
    /// The sessions for whose locks on these tables of the current database others wait, if they have had them
    /// for a second or longer. The oldest comes first.
    ///
    /// # Errors
    ///
    /// [`Error::LocksHidden`] without the right to see locks, and when MySQL fails.
    pub async fn blockers(&mut self, tables: &[String]) -> Result<Vec<Blocker>, Error> {
        self.lock_holders(&[OF_ROWS, OF_TABLES], 1.0, tables).await
    }

    /// The sessions that hold one of these tables of the current database, and so keep it from being swapped.
    ///
    /// # Errors
    ///
    /// [`Error::LocksHidden`] without the right to see locks, and when MySQL fails.
    pub async fn table_holders(&mut self, tables: &[String]) -> Result<Vec<Blocker>, Error> {
        self.lock_holders(&[READERS], 0.2, tables).await
    }

    async fn lock_holders(
        &mut self,
        sources: &[&str],
        seconds: f64,
        tables: &[String],
    ) -> Result<Vec<Blocker>, Error> {
        // The event id of a lock is the number that the session's next event gets. So the statement that took
        // the lock is the last one with a lower id.
        let sql = format!(
            "SELECT t.PROCESSLIST_ID AS session, t.PROCESSLIST_USER AS user, t.PROCESSLIST_HOST AS host,
                    (SELECT a.ATTR_VALUE FROM performance_schema.session_connect_attrs AS a
                     WHERE a.PROCESSLIST_ID = t.PROCESSLIST_ID
                       AND a.ATTR_NAME IN ('program_name', '_client_name')
                     ORDER BY a.ATTR_NAME DESC LIMIT 1) AS program,
                    COALESCE(
                        (SELECT s.DIGEST_TEXT FROM performance_schema.events_statements_current AS s
                         WHERE s.THREAD_ID = held.thread AND s.EVENT_ID < held.event
                         ORDER BY s.EVENT_ID DESC LIMIT 1),
                        (SELECT s.DIGEST_TEXT FROM performance_schema.events_statements_history AS s
                         WHERE s.THREAD_ID = held.thread AND s.EVENT_ID < held.event
                         ORDER BY s.EVENT_ID DESC LIMIT 1),
                        (SELECT s.DIGEST_TEXT FROM performance_schema.events_statements_current AS s
                         WHERE s.THREAD_ID = held.thread ORDER BY s.EVENT_ID LIMIT 1)) AS statement,
                    held.tables, held.whole = 1 AS whole_tables,
                    CAST(COALESCE(x.TIMER_WAIT / 1e12, t.PROCESSLIST_TIME, 0) AS DOUBLE) AS seconds
             FROM (SELECT thread, MIN(event) AS event, MAX(whole) AS whole,
                          GROUP_CONCAT(DISTINCT name ORDER BY name SEPARATOR ', ') AS tables
                   FROM ({}) AS sources
                   GROUP BY thread) AS held
             LEFT JOIN performance_schema.threads AS t ON t.THREAD_ID = held.thread
             LEFT JOIN performance_schema.events_transactions_current AS x
                    ON x.THREAD_ID = held.thread AND x.STATE = 'ACTIVE'
             WHERE x.TIMER_WAIT IS NULL OR x.TIMER_WAIT / 1e12 >= ?
             ORDER BY seconds DESC
             LIMIT 5",
            sources.join(" UNION ALL ")
        );
        let names = serde_json::Value::from(tables).to_string();
        let mut read = query_as(AssertSqlSafe(sql));
        for _source in sources {
            read = read.bind(&names);
        }
        let read = read.bind(seconds).fetch_all(&mut self.connection);
        match within("reading who holds locks", read).await {
            Ok(rows) => Ok(rows.into_iter().map(BlockerRow::blocker).collect()),
            Err(Error::Statement { source, .. })
                if matches!(
                    number(&source),
                    Some(ER_TABLEACCESS_DENIED_ERROR | ER_DBACCESS_DENIED_ERROR)
                ) =>
            {
                Err(Error::LocksHidden)
            }
            Err(error) => Err(error),
        }
    }
}
