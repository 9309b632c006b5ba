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

use super::inbox::InboxTable;
use super::parked::ParkedTable;
use super::session::within;
use super::{Error, Gate, Passage, Session};
use crate::sequence::{Head, Last, Step};

/// The statements of one projection's bookkeeping.
#[derive(Clone)]
pub(crate) struct Ledger {
    projection: String,
    read_heads: SqlStr,
    lock_heads: SqlStr,
    move_heads: SqlStr,
    pub(super) parked: ParkedTable,
    pub(super) inbox: InboxTable,
    read_checkpoint: SqlStr,
    read_epoch: SqlStr,
    move_checkpoint: SqlStr,
    add_healed: SqlStr,
    read_healed: SqlStr,
    begin_replay: SqlStr,
    end_replay: SqlStr,
    /// Creates the tables; harmless when they are there.
    pub(super) create: [SqlStr; 4],
    /// The names of the tables.
    pub(super) tables: [String; 4],
}

/// How far a projection is in the event store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Up to here, every event is known to be applied.
    pub(crate) position: Position,
    /// Up to where history must be replayed before the queue is followed; `None` when that is done.
    pub(crate) replay_until: Option<Position>,
    /// Tells these tables from those that a rebuild has put in their place.
    pub(crate) epoch: Uuid,
}

impl Ledger {
    /// The bookkeeping of a projection.
    pub(crate) fn of(projection: &str) -> Self {
        let streams = format!("{projection}__streams");
        let checkpoint = format!("{projection}__checkpoint");
        let parked = ParkedTable::of(projection, &streams);
        let inbox = InboxTable::of(projection);
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        // Read in the order of the array, so that two batches lock common streams in one order.
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
            // A stream that does not stand where it was read, because somebody else moved it, makes
            // `version` NULL, which the column refuses: the whole batch is rolled back.
            move_heads: sql(format!(
                "INSERT INTO {streams} (stream_id, version, previous_version, event_id, parked)
                 SELECT moved.stream_id, moved.version, moved.previous_version,
                        UUID_TO_BIN(moved.event_id), moved.parked
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (
                          stream_id        VARCHAR(255) CHARACTER SET utf8mb4
                                           COLLATE utf8mb4_0900_bin PATH '$[0]',
                          previous_version BIGINT UNSIGNED PATH '$[1]',
                          version          BIGINT UNSIGNED PATH '$[2]',
                          event_id         CHAR(36) PATH '$[3]',
                          parked           TINYINT PATH '$[4]'
                      )) AS moved
                 ON DUPLICATE KEY UPDATE
                     version = IF({streams}.version = moved.previous_version
                                  AND NOT {streams}.parked, moved.version, NULL),
                     previous_version = moved.previous_version,
                     event_id = UUID_TO_BIN(moved.event_id),
                     parked = moved.parked"
            )),
            read_checkpoint: sql(format!(
                "SELECT position, replay_until, epoch FROM {checkpoint} WHERE id = 1"
            )),
            read_epoch: sql(format!("SELECT epoch FROM {checkpoint} WHERE id = 1")),
            move_checkpoint: sql(format!(
                "UPDATE {checkpoint} SET position = GREATEST(position, ?) WHERE id = 1"
            )),
            add_healed: sql(format!("UPDATE {checkpoint} SET healed = healed + ? WHERE id = 1")),
            read_healed: sql(format!("SELECT healed FROM {checkpoint} WHERE id = 1")),
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
                         event_id         BINARY(16) NOT NULL,
                         parked           BOOLEAN NOT NULL
                     ) ENGINE = InnoDB"
                )),
                sql(format!(
                    "CREATE TABLE IF NOT EXISTS {checkpoint} (
                         id       TINYINT NOT NULL PRIMARY KEY CHECK (id = 1),
                         position BIGINT UNSIGNED NOT NULL,
                         replay_until BIGINT UNSIGNED NULL,
                         healed       BIGINT UNSIGNED NOT NULL DEFAULT 0,
                         epoch        BINARY(16) NOT NULL DEFAULT (UUID_TO_BIN(UUID()))
                     ) ENGINE = InnoDB"
                )),
                parked.create.clone(),
                inbox.create.clone(),
            ],
            projection: projection.to_owned(),
            tables: [streams, checkpoint, parked.name.clone(), inbox.name.clone()],
            parked,
            inbox,
        }
    }

    /// The table with a row for each stream.
    pub(crate) fn streams_table(&self) -> &str {
        &self.tables[0]
    }

    pub(super) fn projection(&self) -> &str {
        &self.projection
    }

    /// Waits for the gate of the projection, and keeps it until the transaction ends.
    pub(super) async fn pass(
        &self,
        connection: &mut MySqlConnection,
        passage: Passage,
    ) -> Result<Gate, Error> {
        let sql = match passage {
            Passage::Shared => {
                "SELECT paused_reason, generation, swapping
                 FROM projector_projections WHERE name = ? FOR SHARE"
            }
            Passage::Alone => {
                "SELECT paused_reason, generation, swapping
                 FROM projector_projections WHERE name = ? FOR UPDATE"
            }
        };
        let read = sqlx::query_as(sql).bind(&self.projection).fetch_optional(connection);
        let found: Option<(Option<String>, u32, bool)> =
            within("waiting for the gate", read).await?;
        match found {
            None => Err(Error::NotMigrated { table: self.tables[0].clone() }),
            Some((Some(reason), ..)) => Ok(Gate::Paused { reason }),
            Some((None, generation, swapping)) => Ok(Gate::Open { generation, swapping }),
        }
    }

    /// Which tables are in service.
    pub(super) async fn epoch(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Option<Uuid>, Error> {
        let read = sqlx::query_scalar(self.read_epoch.clone()).fetch_optional(connection);
        within("reading the checkpoint", read).await
    }

    /// Locks streams until the transaction ends and reads where they stand; those never seen are
    /// left out. The streams must be sorted.
    pub(super) async fn lock(
        &self,
        connection: &mut MySqlConnection,
        streams: &[&StreamId],
    ) -> Result<HashMap<StreamId, Head>, Error> {
        if streams.is_empty() {
            return Ok(HashMap::new());
        }
        heads(connection, self.lock_heads.clone(), streams).await
    }

    /// Moves streams on.
    pub(super) async fn advance(
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
                    u8::from(step.to.is_parked)
                ])
            })
            .collect();
        let rows = serde_json::Value::Array(rows).to_string();
        let query = sqlx::query(self.move_heads.clone()).bind(rows);
        // The guard: NULL for a column that cannot be NULL.
        retried(1048, within("moving the bookkeeping", query.execute(connection)).await)
    }
}

/// Takes an error that says that another instance was faster for one that calls for another try.
pub(super) fn retried<T>(code: u16, result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(Error::Statement { operation, source })
            if super::error::number(&source) == Some(code) =>
        {
            Err(Error::Transient { operation, source })
        }
        other => other.map(drop),
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

    /// Streams with events that were applied, from after one on, and the last event of each.
    pub(crate) async fn bookkeeping(
        &mut self,
        ledger: &Ledger,
        after: Option<&StreamId>,
        limit: u32,
    ) -> Result<Vec<(StreamId, Last)>, Error> {
        let sql = format!(
            "SELECT stream_id, version, event_id, FALSE FROM {}
             WHERE stream_id > ? AND version > 0 ORDER BY stream_id LIMIT ?",
            ledger.streams_table()
        );
        let read = sqlx::query_as(AssertSqlSafe(sql))
            .bind(after.map_or("", StreamId::as_str))
            .bind(limit)
            .fetch_all(&mut self.connection);
        let rows: Vec<HeadRow> = within("reading the bookkeeping", read).await?;
        let found = rows.into_iter().filter_map(head);
        Ok(found.filter_map(|(stream_id, head)| Some((stream_id, head.last?))).collect())
    }

    /// Some streams, chosen at random.
    pub(crate) async fn some_streams(
        &mut self,
        ledger: &Ledger,
        count: u32,
    ) -> Result<Vec<StreamId>, Error> {
        let sql =
            format!("SELECT stream_id FROM {} ORDER BY RAND() LIMIT ?", ledger.streams_table());
        let read =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(count).fetch_all(&mut self.connection);
        let found: Vec<String> = super::compare::patiently(read).await?;
        Ok(found.into_iter().filter_map(|name| StreamId::new(name).ok()).collect())
    }

    /// How far a projection is; `None` for a new one.
    pub(crate) async fn checkpoint(
        &mut self,
        ledger: &Ledger,
    ) -> Result<Option<Checkpoint>, Error> {
        let query = sqlx::query_as(ledger.read_checkpoint.clone());
        let found: Option<(u64, Option<u64>, Uuid)> =
            within("reading the checkpoint", query.fetch_optional(&mut self.connection)).await?;
        let position = |number| Position::new(i64::try_from(number).ok()?).ok();
        Ok(found.and_then(|(number, until, epoch)| {
            let replay_until = until.and_then(position);
            Some(Checkpoint { position: position(number)?, replay_until, epoch })
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

    /// Counts events that had been lost on the way.
    pub(crate) async fn add_healed(&mut self, ledger: &Ledger, events: usize) -> Result<(), Error> {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        let add = sqlx::query(ledger.add_healed.clone()).bind(events);
        within("counting healed events", add.execute(&mut self.connection)).await.map(drop)
    }

    /// How many events had been lost on the way so far.
    pub(crate) async fn healed(&mut self, ledger: &Ledger) -> Result<u64, Error> {
        let read = sqlx::query_scalar(ledger.read_healed.clone());
        let found: Option<u64> =
            within("reading healed events", read.fetch_optional(&mut self.connection)).await?;
        Ok(found.unwrap_or(0))
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
    let rows: Vec<HeadRow> = within("reading the bookkeeping", query.fetch_all(connection)).await?;
    Ok(rows.into_iter().filter_map(head).collect())
}

/// A stream, its version, the event with that version, and whether it is parked.
type HeadRow = (String, u64, Uuid, bool);

/// Only this module writes the rows, from the same types.
fn head((stream_id, version, event_id, is_parked): HeadRow) -> Option<(StreamId, Head)> {
    let last = (version > 0).then(|| {
        let version = StreamVersion::new(i64::try_from(version).ok()?).ok()?;
        Some(Last { version, event_id: EventId::new(event_id).ok()? })
    });
    Some((StreamId::new(stream_id).ok()?, Head { last: last.flatten(), is_parked }))
}

fn names(streams: &[&StreamId]) -> String {
    let names: Vec<&str> = streams.iter().map(|stream_id| stream_id.as_str()).collect();
    json!(names).to_string()
}
