//! The bookkeeping of one projection: where each of its streams stands.
//!
//! It lies in tables of its own beside the read model, and moves in the transaction of the effects.
//! The statements have the same text for any number of streams, so that each is prepared once: the
//! streams go in as one JSON array.

use std::collections::HashMap;

use domain_events::{EventId, Position, StreamId, StreamVersion};
use serde_json::json;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};
use uuid::Uuid;

use super::session::within;
use super::{Error, Session};
use crate::sequence::{Head, Move};

/// The statements of one projection's bookkeeping.
#[derive(Clone)]
pub(crate) struct Ledger {
    read_heads: SqlStr,
    lock_heads: SqlStr,
    begin_heads: SqlStr,
    move_heads: SqlStr,
    read_checkpoint: SqlStr,
    move_checkpoint: SqlStr,
    begin_replay: SqlStr,
    end_replay: SqlStr,
    /// Creates the tables; harmless when they are there.
    pub(super) create: [SqlStr; 2],
    /// The names of the tables.
    pub(super) tables: [String; 2],
}

/// How far a projection is in the event store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Up to here, every event is known to be applied.
    pub(crate) position: Position,
    /// Up to where history must be replayed before the queue is followed; `None` when that is done.
    pub(crate) replay_until: Option<Position>,
}

impl Ledger {
    /// The bookkeeping of a projection.
    pub(crate) fn of(projection: &str) -> Self {
        let streams = format!("{projection}__streams");
        let checkpoint = format!("{projection}__checkpoint");
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        // Read in the order of the array, so that two batches lock common streams in one order.
        let heads = format!(
            "SELECT s.stream_id, s.version, s.event_id
             FROM JSON_TABLE(?, '$[*]' COLUMNS (
                      stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PATH '$'
                  )) AS wanted
             STRAIGHT_JOIN {streams} AS s ON s.stream_id = wanted.stream_id"
        );
        Self {
            lock_heads: sql(format!("{heads} FOR UPDATE OF s")),
            read_heads: sql(heads),
            // The no-op takes the lock of a row that somebody else has begun meanwhile.
            begin_heads: sql(format!(
                "INSERT INTO {streams} (stream_id, version, previous_version, event_id)
                 SELECT wanted.stream_id, 0, 0, REPEAT(X'00', 16)
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (
                          stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin
                                    PATH '$'
                      )) AS wanted
                 ON DUPLICATE KEY UPDATE version = {streams}.version"
            )),
            // A stream that does not stand where it was read, because somebody else moved it, makes
            // `version` NULL, which the column refuses: the whole batch is rolled back.
            move_heads: sql(format!(
                "INSERT INTO {streams} (stream_id, version, previous_version, event_id)
                 SELECT moved.stream_id, moved.version, moved.previous_version,
                        UUID_TO_BIN(moved.event_id)
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (
                          stream_id        VARCHAR(255) CHARACTER SET utf8mb4
                                           COLLATE utf8mb4_0900_bin PATH '$[0]',
                          previous_version BIGINT UNSIGNED PATH '$[1]',
                          version          BIGINT UNSIGNED PATH '$[2]',
                          event_id         CHAR(36) PATH '$[3]'
                      )) AS moved
                 ON DUPLICATE KEY UPDATE
                     version = IF({streams}.version = moved.previous_version, moved.version, NULL),
                     previous_version = moved.previous_version,
                     event_id = UUID_TO_BIN(moved.event_id)"
            )),
            read_checkpoint: sql(format!(
                "SELECT position, replay_until FROM {checkpoint} WHERE id = 1"
            )),
            move_checkpoint: sql(format!(
                "UPDATE {checkpoint} SET position = GREATEST(position, ?) WHERE id = 1"
            )),
            begin_replay: sql(format!(
                "INSERT INTO {checkpoint} (id, position, replay_until) VALUES (1, 0, ?) AS new
                 ON DUPLICATE KEY UPDATE replay_until =
                     GREATEST(COALESCE({checkpoint}.replay_until, 0), new.replay_until)"
            )),
            // Unless somebody has asked for more meanwhile.
            end_replay: sql(format!(
                "UPDATE {checkpoint} SET replay_until = NULL WHERE id = 1 AND replay_until <= ?"
            )),
            create: [
                sql(format!(
                    "CREATE TABLE IF NOT EXISTS {streams} (
                         stream_id        VARCHAR(255) CHARACTER SET utf8mb4
                                          COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
                         version          BIGINT UNSIGNED NOT NULL,
                         previous_version BIGINT UNSIGNED NOT NULL,
                         event_id         BINARY(16) NOT NULL
                     ) ENGINE = InnoDB"
                )),
                sql(format!(
                    "CREATE TABLE IF NOT EXISTS {checkpoint} (
                         id       TINYINT NOT NULL PRIMARY KEY CHECK (id = 1),
                         position BIGINT UNSIGNED NOT NULL,
                         replay_until BIGINT UNSIGNED NULL
                     ) ENGINE = InnoDB"
                )),
            ],
            tables: [streams, checkpoint],
        }
    }

    /// Locks streams until the transaction ends and reads where they stand; those never seen are
    /// left out. The streams must be sorted.
    ///
    /// A stream that was never seen gets a row, so that there is something to lock: two instances
    /// that apply its first events wait for each other here, and not in the middle of a handler.
    pub(super) async fn lock(
        &self,
        connection: &mut MySqlConnection,
        streams: &[&StreamId],
    ) -> Result<HashMap<StreamId, Head>, Error> {
        let mut known = heads(connection, self.lock_heads.clone(), streams).await?;
        let new: Vec<&StreamId> =
            streams.iter().copied().filter(|stream| !known.contains_key(stream)).collect();
        if !new.is_empty() {
            let begin = sqlx::query(self.begin_heads.clone()).bind(names(&new));
            within("beginning the bookkeeping of streams", begin.execute(&mut *connection)).await?;
            known.extend(heads(connection, self.lock_heads.clone(), &new).await?);
        }
        Ok(known)
    }

    /// Moves streams on.
    pub(super) async fn advance(
        &self,
        connection: &mut MySqlConnection,
        moves: &[Move<'_>],
    ) -> Result<(), Error> {
        let rows: Vec<_> = moves
            .iter()
            .map(|step| {
                let id = step.to.event_id.to_string();
                json!([step.stream_id.as_str(), step.from, step.to.version.get(), id])
            })
            .collect();
        let rows = serde_json::Value::Array(rows).to_string();
        let query = sqlx::query(self.move_heads.clone()).bind(rows);
        match within("moving the bookkeeping", query.execute(connection)).await {
            // The guard: NULL for a column that cannot be NULL.
            Err(Error::Statement { operation, source })
                if super::error::number(&source) == Some(1048) =>
            {
                Err(Error::Transient { operation, source })
            }
            other => other.map(drop),
        }
    }
}

impl Session {
    /// Where streams stand, without locking them; those never seen are left out.
    pub(crate) async fn heads(
        &mut self,
        ledger: &Ledger,
        streams: &[&StreamId],
    ) -> Result<HashMap<StreamId, Head>, Error> {
        heads(&mut self.connection, ledger.read_heads.clone(), streams).await
    }

    /// How far a projection is; `None` for a new one.
    pub(crate) async fn checkpoint(
        &mut self,
        ledger: &Ledger,
    ) -> Result<Option<Checkpoint>, Error> {
        let query = sqlx::query_as(ledger.read_checkpoint.clone());
        let found: Option<(u64, Option<u64>)> =
            within("reading the checkpoint", query.fetch_optional(&mut self.connection)).await?;
        let position = |number| Position::new(i64::try_from(number).ok()?).ok();
        Ok(found.and_then(|(number, until)| {
            let replay_until = until.and_then(position);
            Some(Checkpoint { position: position(number)?, replay_until })
        }))
    }

    /// Asks for a replay of the history up to a position. Until it is done, nobody follows the queue.
    pub(crate) async fn begin_replay(
        &mut self,
        ledger: &Ledger,
        until: Position,
    ) -> Result<(), Error> {
        let query = sqlx::query(ledger.begin_replay.clone()).bind(until.get());
        within("beginning the replay", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Notes that the history up to a position was replayed.
    pub(crate) async fn end_replay(
        &mut self,
        ledger: &Ledger,
        until: Position,
    ) -> Result<(), Error> {
        let query = sqlx::query(ledger.end_replay.clone()).bind(until.get());
        within("ending the replay", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Lets another session sweep a projection.
    pub(crate) async fn disown(&mut self, projection: &str) -> Result<(), Error> {
        let query = sqlx::query_scalar(
            "SELECT RELEASE_LOCK(CONCAT('projector.sweep.', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)))",
        )
        .bind(projection);
        let released: Result<Option<i64>, _> =
            within("giving up the sweep", query.fetch_one(&mut self.connection)).await;
        released.map(drop)
    }

    /// Makes this session the one that sweeps a projection, unless another one is; until it ends.
    pub(crate) async fn try_own(&mut self, projection: &str) -> Result<bool, Error> {
        // The names of locks are global to the server, and 64 characters at most.
        let query = sqlx::query_scalar(
            "SELECT GET_LOCK(CONCAT('projector.sweep.', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)), 0)",
        )
        .bind(projection);
        let locked: Option<i64> =
            within("asking for the sweep", query.fetch_one(&mut self.connection)).await?;
        Ok(locked == Some(1))
    }

    /// Moves the checkpoint forward; never back.
    pub(crate) async fn move_checkpoint(
        &mut self,
        ledger: &Ledger,
        position: Position,
    ) -> Result<(), Error> {
        let query = sqlx::query(ledger.move_checkpoint.clone()).bind(position.get());
        within("moving the checkpoint", query.execute(&mut self.connection)).await.map(drop)
    }
}

async fn heads(
    connection: &mut MySqlConnection,
    sql: SqlStr,
    streams: &[&StreamId],
) -> Result<HashMap<StreamId, Head>, Error> {
    let query = sqlx::query_as(sql).bind(names(streams));
    let rows: Vec<(String, u64, Uuid)> =
        within("reading the bookkeeping", query.fetch_all(connection)).await?;
    let head = |(stream_id, version, event_id): (String, u64, Uuid)| {
        let head = Head {
            version: StreamVersion::new(i64::try_from(version).ok()?).ok()?,
            event_id: EventId::new(event_id).ok()?,
        };
        Some((StreamId::new(stream_id).ok()?, head))
    };
    // Only this module writes the rows, from the same types. Version 0 is a stream without events.
    Ok(rows.into_iter().filter_map(head).collect())
}

fn names(streams: &[&StreamId]) -> String {
    let names: Vec<&str> = streams.iter().map(|stream_id| stream_id.as_str()).collect();
    json!(names).to_string()
}
