//! Events without a version: each is applied once, by its id.

use std::collections::HashSet;
use std::time::Duration;

use domain_events::EventId;
use serde_json::json;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr, query, query_scalar};
use uuid::Uuid;

use super::ledger::retried;
use super::session::within;
use super::{Error, Ledger, Session};

/// The statements of one projection's inbox.
#[derive(Clone)]
pub(super) struct InboxTable {
    pub(super) name: String,
    pub(super) create: SqlStr,
    read: SqlStr,
    note: SqlStr,
    prune: SqlStr,
    any: SqlStr,
}

impl InboxTable {
    pub(super) fn of(projection: &str) -> Self {
        let name = format!("{projection}__inbox");
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        Self {
            read: sql(format!(
                "SELECT i.event_id
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (event_id CHAR(36) PATH '$')) AS wanted
                 STRAIGHT_JOIN {name} AS i ON i.event_id = UUID_TO_BIN(wanted.event_id)"
            )),
            note: sql(format!(
                "INSERT INTO {name} (event_id, seen_at)
                 SELECT UUID_TO_BIN(seen.event_id), UTC_TIMESTAMP(6)
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (event_id CHAR(36) PATH '$')) AS seen"
            )),
            prune: sql(format!(
                "DELETE FROM {name} WHERE seen_at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND
                 ORDER BY seen_at LIMIT 1000"
            )),
            any: sql(format!("SELECT EXISTS (SELECT 1 FROM {name})")),
            create: sql(format!(
                "CREATE TABLE IF NOT EXISTS {name} (
                         event_id BINARY(16) NOT NULL PRIMARY KEY,
                         seen_at  DATETIME(6) NOT NULL,
                         INDEX by_time (seen_at)
                     ) ENGINE = InnoDB"
            )),
            name,
        }
    }
}

impl Ledger {
    /// Which of some events without a version were applied.
    pub(super) async fn seen(
        &self,
        connection: &mut MySqlConnection,
        events: &[EventId],
    ) -> Result<HashSet<EventId>, Error> {
        if events.is_empty() {
            return Ok(HashSet::new());
        }
        let read = query_scalar(self.inbox.read.clone()).bind(ids(events));
        let found: Vec<Uuid> = within("reading the inbox", read.fetch_all(connection)).await?;
        Ok(found.into_iter().filter_map(|id| EventId::new(id).ok()).collect())
    }

    /// Notes events without a version as applied.
    pub(super) async fn note(
        &self,
        connection: &mut MySqlConnection,
        events: &[EventId],
    ) -> Result<(), Error> {
        let note = query(self.inbox.note.clone()).bind(ids(events));
        retried(1062, within("noting events in the inbox", note.execute(connection)).await)
    }
}

impl Session {
    /// Forgets events without a version that were seen longer ago; some of them. Says how many.
    pub(crate) async fn prune_inbox(
        &mut self,
        ledger: &Ledger,
        older_than: Duration,
    ) -> Result<u64, Error> {
        let prune = query(ledger.inbox.prune.clone()).bind(older_than.as_secs());
        let done = within("pruning the inbox", prune.execute(&mut self.connection)).await?;
        Ok(done.rows_affected())
    }

    /// Whether any event without a version was applied, and is not forgotten.
    pub(crate) async fn has_inbox(&mut self, ledger: &Ledger) -> Result<bool, Error> {
        let any = query_scalar(ledger.inbox.any.clone());
        within("looking into the inbox", any.fetch_one(&mut self.connection)).await
    }

    /// Whether an event without a version was applied.
    pub(crate) async fn has_seen(
        &mut self,
        ledger: &Ledger,
        event: EventId,
    ) -> Result<bool, Error> {
        let seen = ledger.seen(&mut self.connection, &[event]).await?;
        Ok(!seen.is_empty())
    }
}

fn ids(events: &[EventId]) -> String {
    let ids: Vec<String> = events.iter().map(ToString::to_string).collect();
    json!(ids).to_string()
}
