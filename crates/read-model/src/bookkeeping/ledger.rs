//! The ledger: where each stream of one projection stands.
//!
//! It has its own tables beside the read model, and changes in the transaction of the effects. The streams
//! of a batch are one JSON parameter, so each statement has the same text for any number of streams and is
//! prepared once.

use domain_events::{EventId, Position, StreamId, StreamVersion};
use serde_json::json;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};
use uuid::Uuid;

use super::checkpoint::CheckpointTable;
use super::parked::ParkedTable;
use crate::batching::quoted;
use crate::error::number;
use crate::error_codes::ER_BAD_NULL_ERROR;
use crate::session::within;
use crate::session::within_minutes;
use crate::{Batch, Error, Session};
use projection::plan::{Head, Heads, Last, Step};

/// The bookkeeping of one projection: the names of its tables, and its prepared statements.
#[derive(Clone)]
pub struct Ledger {
    projection: String,
    read_heads: SqlStr,
    lock_heads: SqlStr,
    move_heads: SqlStr,
    pub(crate) parked: ParkedTable,
    pub(crate) progress: CheckpointTable,
    streams: String,
    migrations: String,
}

impl Ledger {
    /// The bookkeeping of the projection with this name.
    pub fn of(projection: &str) -> Self {
        let streams = format!("{projection}__streams");
        let migrations = format!("{projection}__migrations");
        let parked = ParkedTable::of(projection, &streams);
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        // STRAIGHT_JOIN reads the rows in the order of the array, so that two batches lock their common
        // streams in the same order.
        let heads = format!(
            "SELECT s.stream_id, s.version, s.event_id, s.parked
             FROM JSON_TABLE(?, '$[*]' COLUMNS (
                      stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PATH '$'
                  )) AS wanted
             STRAIGHT_JOIN {streams} AS s ON s.stream_id = wanted.stream_id"
        );
        Self {
            lock_heads: sql(format!("{heads} FOR UPDATE OF s")),
            read_heads: sql(heads),
            // If another instance has changed the row of a stream since it was read, `version` becomes
            // NULL. The column refuses NULL, and the whole batch is rolled back.
            move_heads: sql(format!(
                "INSERT INTO {streams} (stream_id, version, previous_version, event_id, parked,
                                        position)
                 SELECT moved.stream_id, moved.version, moved.previous_version,
                        UUID_TO_BIN(moved.event_id), moved.parked, moved.position
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (
                          stream_id        VARCHAR(255) CHARACTER SET utf8mb4
                                           COLLATE utf8mb4_0900_bin PATH '$[0]',
                          previous_version BIGINT UNSIGNED PATH '$[1]',
                          version          BIGINT UNSIGNED PATH '$[2]',
                          event_id         CHAR(36) PATH '$[3]',
                          parked           TINYINT PATH '$[4]',
                          position         BIGINT UNSIGNED PATH '$[5]'
                      )) AS moved
                 ON DUPLICATE KEY UPDATE
                     version = IF({streams}.version = moved.previous_version
                                  AND NOT {streams}.parked, moved.version, NULL),
                     previous_version = moved.previous_version,
                     event_id = UUID_TO_BIN(moved.event_id),
                     parked = moved.parked,
                     position = COALESCE(moved.position, {streams}.position)"
            )),
            projection: projection.to_owned(),
            streams,
            migrations,
            parked,
            progress: CheckpointTable::of(projection),
        }
    }

    /// The name of the projection.
    pub fn projection(&self) -> &str {
        &self.projection
    }

    /// The names of its tables.
    pub fn tables(&self) -> [&str; 4] {
        [&self.streams, &self.progress.name, &self.parked.name, &self.migrations]
    }

    /// The table with a row for each stream.
    pub fn streams_table(&self) -> &str {
        &self.streams
    }

    /// The table of the checkpoint.
    pub(crate) fn checkpoint_table(&self) -> &str {
        &self.progress.name
    }

    /// The table of the applied migrations.
    pub fn migrations_table(&self) -> &str {
        &self.migrations
    }

    /// The error of a projection that is not registered in MySQL.
    pub(crate) fn not_migrated(&self) -> Error {
        Error::NotMigrated { missing: format!("projection {}", self.projection) }
    }

    /// Locks streams until the transaction ends, and reads where they stand. The streams must be sorted.
    /// The result omits new ones.
    pub(crate) async fn lock(
        &self,
        connection: &mut MySqlConnection,
        streams: &[&StreamId],
    ) -> Result<Heads, Error> {
        if streams.is_empty() {
            return Ok(Heads::new());
        }
        self.read(connection, self.lock_heads.clone(), streams).await
    }

    async fn read(
        &self,
        connection: &mut MySqlConnection,
        sql: SqlStr,
        streams: &[&StreamId],
    ) -> Result<Heads, Error> {
        let query = sqlx::query_as(sql).bind(names(streams));
        let rows: Vec<HeadRow> =
            within("reading the bookkeeping", query.fetch_all(connection)).await?;
        rows.into_iter().map(|row| self.head(row)).collect()
    }

    pub(super) fn head(
        &self,
        (stream_id, version, event_id, is_parked): HeadRow,
    ) -> Result<(StreamId, Head), Error> {
        let read = || {
            let last = match version {
                0 => None,
                number => Some(Last {
                    version: StreamVersion::new(i64::try_from(number).unwrap_or_default())?,
                    event_id: EventId::new(event_id)?,
                }),
            };
            Ok((StreamId::new(stream_id.as_str())?, Head { last, is_parked }))
        };
        read().map_err(|source| Error::row(&self.streams, &stream_id, source))
    }

    /// A stream id from a row of this bookkeeping.
    fn stream_id(&self, name: &str) -> Result<StreamId, Error> {
        StreamId::new(name).map_err(|source| Error::row(&self.streams, name, source))
    }

    /// Updates where streams stand.
    ///
    /// # Errors
    ///
    /// [`Error::Transient`] if another instance has changed one of them since it was read.
    pub(crate) async fn advance(
        &self,
        connection: &mut MySqlConnection,
        steps: &[Step<'_>],
    ) -> Result<(), Error> {
        let version = |head: Head| head.last.map_or(0, |last| last.version.get());
        let rows: Vec<_> = steps
            .iter()
            .map(|step| {
                let id = step.to.last.map_or(Uuid::nil(), |last| last.event_id.uuid());
                let stream_id = step.stream_id.as_str();
                json!([
                    stream_id,
                    version(step.from),
                    version(step.to),
                    id,
                    u8::from(step.to.is_parked),
                    step.position.map(Position::get)
                ])
            })
            .collect();
        let rows = serde_json::Value::Array(rows).to_string();
        let query = sqlx::query(self.move_heads.clone()).bind(rows);
        match within("updating the bookkeeping", query.execute(connection)).await {
            // See `move_heads`: NULL shows that another instance was faster.
            Err(Error::Statement { operation, source })
                if number(&source) == Some(ER_BAD_NULL_ERROR) =>
            {
                Err(Error::Transient { operation, source })
            }
            moved => moved.map(drop),
        }
    }
}

impl Batch<'_> {
    /// A stream of which these tables and those in another database have applied different numbers of
    /// events.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn uneven_stream(&mut self, other: &str) -> Result<Option<String>, Error> {
        let streams = &self.ledger().streams;
        let sql = format!(
            "SELECT s.stream_id FROM {streams} AS s
             JOIN {}.{streams} AS o ON o.stream_id = s.stream_id
             WHERE o.version <> s.version LIMIT 1",
            quoted(other)
        );
        within_minutes(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(self.connection()))
            .await
    }
}

impl Session {
    /// Where streams stand, without locking them. The result omits new ones.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn heads(&mut self, ledger: &Ledger, streams: &[&StreamId]) -> Result<Heads, Error> {
        ledger.read(&mut self.connection, ledger.read_heads.clone(), streams).await
    }

    /// The number of streams.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn count_streams(&mut self, ledger: &Ledger) -> Result<u64, Error> {
        let sql = format!("SELECT COUNT(*) FROM {}", ledger.streams);
        let count = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.connection);
        let count: i64 = within_minutes(count).await?;
        Ok(count.unsigned_abs())
    }

    /// A random sample of streams.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn some_streams(
        &mut self,
        ledger: &Ledger,
        count: u32,
    ) -> Result<Vec<StreamId>, Error> {
        let sql = format!("SELECT stream_id FROM {} ORDER BY RAND() LIMIT ?", ledger.streams);
        let read =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(count).fetch_all(&mut self.connection);
        let found: Vec<String> = within_minutes(read).await?;
        found.into_iter().map(|name| ledger.stream_id(&name)).collect()
    }

    /// The streams that lag in another database: the bookkeeping there has a lower version, or no row.
    /// Streams that are parked there are left out.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn streams_lagging_in(
        &mut self,
        other: &str,
        ledger: &Ledger,
    ) -> Result<Vec<StreamId>, Error> {
        let (other, streams) = (quoted(other), &ledger.streams);
        let sql = format!(
            "SELECT s.stream_id FROM {streams} AS s
             LEFT JOIN {other}.{streams} AS o ON o.stream_id = s.stream_id
             WHERE o.stream_id IS NULL OR (o.version < s.version AND NOT o.parked)"
        );
        let read = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut self.connection);
        let found: Vec<String> = within_minutes(read).await?;
        found.into_iter().map(|name| ledger.stream_id(&name)).collect()
    }
}

/// A stream, its version, the id of the event with that version, and whether the stream is parked.
type HeadRow = (String, u64, Uuid, bool);

fn names(streams: &[&StreamId]) -> String {
    let names: Vec<&str> = streams.iter().map(|stream_id| stream_id.as_str()).collect();
    json!(names).to_string()
}
