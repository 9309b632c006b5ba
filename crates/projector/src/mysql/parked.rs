//! Streams that cannot go on.

use chrono::{DateTime, NaiveDateTime, Utc};
use domain_events::{EventId, EventType, Position, StreamId, StreamVersion};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr, query, query_as};
use uuid::Uuid;

use super::session::{from_row, within};
use super::{Error, Ledger, Session};

/// Why a stream was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ParkKind {
    /// MySQL refuses the handler's statement, or it found another number of rows than it must.
    Refused,
    /// The event lacks a parameter, or has a value that MySQL cannot hold.
    Parameter,
    /// No handler is for its schema version.
    Schema,
    /// Another event with its version was applied.
    Conflict,
}

impl ParkKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Parameter => "parameter",
            Self::Schema => "schema",
            Self::Conflict => "conflict",
        }
    }

    fn named(name: &str) -> Self {
        [Self::Parameter, Self::Schema, Self::Conflict]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .unwrap_or(Self::Refused)
    }
}

/// A stream that cannot go on, and the event that stops it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ParkedStream {
    /// The stream.
    #[serde(serialize_with = "text")]
    pub(crate) stream_id: StreamId,
    /// The version of the event.
    #[serde(serialize_with = "version")]
    pub(crate) version: StreamVersion,
    /// The event.
    #[serde(serialize_with = "text")]
    pub(crate) event_id: EventId,
    /// Its type.
    #[serde(serialize_with = "text")]
    pub(crate) event_type: EventType,
    /// Its position, where that is known.
    #[serde(serialize_with = "position")]
    pub(crate) position: Option<Position>,
    /// Why.
    pub(crate) kind: ParkKind,
    /// Why, in words, with file and line; never a value of the event.
    pub(crate) reason: String,
    /// In a conflict: the event with the same version that was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) applied_event_id: Option<Uuid>,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// Since when.
    pub(crate) parked_at: DateTime<Utc>,
}

fn text<S: serde::Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn version<S: serde::Serializer>(value: &StreamVersion, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(value.get())
}

#[expect(clippy::ref_option, reason = "serde asks for it")]
fn position<S: serde::Serializer>(
    value: &Option<Position>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(position) => serializer.serialize_i64(position.get()),
        None => serializer.serialize_none(),
    }
}

/// The statements of one projection's parked streams.
#[derive(Clone)]
pub(super) struct ParkedTable {
    pub(super) name: String,
    pub(super) create: SqlStr,
    park: SqlStr,
    recently_parked: SqlStr,
    list: SqlStr,
    count: SqlStr,
    unpark_stream: SqlStr,
    forget_stream: SqlStr,
    unpark_row: SqlStr,
}

impl ParkedTable {
    pub(super) fn of(projection: &str, streams: &str) -> Self {
        let name = format!("{projection}__parked");
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        Self {
            park: sql(format!(
                "INSERT INTO {name} (stream_id, version, event_id, event_type, position, kind,
                                       reason, applied_event_id, attempts, parked_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6)) AS new
                 ON DUPLICATE KEY UPDATE
                     attempts = new.attempts, version = new.version, event_id = new.event_id, event_type = new.event_type,
                     position = new.position, kind = new.kind, reason = new.reason,
                     applied_event_id = new.applied_event_id"
            )),
            recently_parked: sql(format!(
                "SELECT COUNT(*) FROM {name}
                 WHERE parked_at > UTC_TIMESTAMP(6) - INTERVAL ? SECOND"
            )),
            list: sql(format!(
                "SELECT stream_id, version, event_id, event_type, position, kind, reason,
                        applied_event_id, attempts, parked_at
                 FROM {name} ORDER BY parked_at, stream_id"
            )),
            count: sql(format!("SELECT kind, COUNT(*) FROM {name} GROUP BY kind")),
            unpark_stream: sql(format!("UPDATE {streams} SET parked = FALSE WHERE stream_id = ?")),
            forget_stream: sql(format!("DELETE FROM {streams} WHERE stream_id = ?")),
            unpark_row: sql(format!("DELETE FROM {name} WHERE stream_id = ?")),
            create: sql(format!(
                    "CREATE TABLE IF NOT EXISTS {name} (
                         stream_id        VARCHAR(255) CHARACTER SET utf8mb4
                                          COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
                         version          BIGINT UNSIGNED NOT NULL,
                         event_id         BINARY(16) NOT NULL,
                         event_type       VARCHAR(255) CHARACTER SET utf8mb4
                                          COLLATE utf8mb4_0900_bin NOT NULL,
                         position         BIGINT UNSIGNED NULL,
                         kind             VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
                         reason           TEXT CHARACTER SET utf8mb4 NOT NULL,
                         applied_event_id BINARY(16) NULL,
                         attempts         INT UNSIGNED NOT NULL,
                         parked_at        DATETIME(6) NOT NULL,
                         INDEX by_time (parked_at)
                     ) ENGINE = InnoDB"
                )),
            name,
        }
    }
}

type ParkedRow =
    (String, u64, Uuid, String, Option<u64>, String, String, Option<Uuid>, u32, NaiveDateTime);

impl Ledger {
    /// Records that a stream cannot go on.
    pub(super) async fn park(
        &self,
        connection: &mut MySqlConnection,
        stream: &ParkedStream,
    ) -> Result<(), Error> {
        let park = query(self.parked.park.clone())
            .bind(stream.stream_id.as_str())
            .bind(stream.version.get())
            .bind(stream.event_id.uuid())
            .bind(stream.event_type.as_str())
            .bind(stream.position.map(Position::get))
            .bind(stream.kind.as_str())
            .bind(&stream.reason)
            .bind(stream.applied_event_id)
            .bind(stream.attempts)
            .execute(connection);
        within("parking a stream", park).await.map(drop)
    }

    pub(super) async fn recently_parked(
        &self,
        connection: &mut MySqlConnection,
        seconds: u64,
    ) -> Result<u64, Error> {
        let count = sqlx::query_scalar(self.parked.recently_parked.clone()).bind(seconds);
        let count: i64 = within("counting parked streams", count.fetch_one(connection)).await?;
        Ok(count.unsigned_abs())
    }

    pub(super) async fn unpark(
        &self,
        connection: &mut MySqlConnection,
        stream_id: &StreamId,
    ) -> Result<(), Error> {
        self.release(connection, stream_id, &self.parked.unpark_stream).await
    }

    pub(super) async fn forget(
        &self,
        connection: &mut MySqlConnection,
        stream_id: &StreamId,
    ) -> Result<(), Error> {
        self.release(connection, stream_id, &self.parked.forget_stream).await
    }

    async fn release(
        &self,
        connection: &mut MySqlConnection,
        stream_id: &StreamId,
        stream: &SqlStr,
    ) -> Result<(), Error> {
        for sql in [stream, &self.parked.unpark_row] {
            let release = query(sql.clone()).bind(stream_id.as_str()).execute(&mut *connection);
            within("letting a stream go on", release).await?;
        }
        Ok(())
    }
}

/// Streams that are parked for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ParkedReason {
    /// Why.
    pub(crate) reason: String,
    /// How many they are.
    pub(crate) streams: i64,
    /// One of them.
    pub(crate) first_stream: String,
    /// The version that it cannot get to.
    pub(crate) first_version: u64,
    /// The event with that version.
    pub(crate) first_event: String,
}

from_row!(ParkedReason { reason, streams, first_stream, first_version, first_event });

impl Session {
    /// Why streams are parked; the hundred reasons that most have.
    pub(crate) async fn parked_reasons(
        &mut self,
        ledger: &Ledger,
    ) -> Result<Vec<ParkedReason>, Error> {
        let sql = format!(
            "SELECT reason, streams, stream_id AS first_stream, version AS first_version,
                    BIN_TO_UUID(event_id) AS first_event
             FROM (
                 SELECT reason, stream_id, version, event_id,
                        COUNT(*) OVER (PARTITION BY reason) AS streams,
                        ROW_NUMBER() OVER (PARTITION BY reason ORDER BY stream_id) AS number
                 FROM {}
             ) AS numbered
             WHERE number = 1 ORDER BY streams DESC, reason LIMIT 100",
            ledger.parked.name
        );
        let read = query_as(AssertSqlSafe(sql)).fetch_all(&mut self.connection);
        super::compare::patiently(read).await
    }

    /// The parked streams of a projection, those first that wait longest.
    pub(crate) async fn parked(&mut self, ledger: &Ledger) -> Result<Vec<ParkedStream>, Error> {
        let read = query_as(ledger.parked.list.clone()).fetch_all(&mut self.connection);
        let rows: Vec<ParkedRow> = within("listing parked streams", read).await?;
        Ok(rows.into_iter().filter_map(parked).collect())
    }

    /// How many streams are parked, and how many of them because of a conflict.
    pub(crate) async fn count_parked(&mut self, ledger: &Ledger) -> Result<(i64, i64), Error> {
        let read = query_as(ledger.parked.count.clone()).fetch_all(&mut self.connection);
        let rows: Vec<(String, i64)> = within("counting parked streams", read).await?;
        let of = |wanted: &dyn Fn(&str) -> bool| {
            rows.iter().filter(|(kind, _)| wanted(kind)).map(|(_, count)| count).sum()
        };
        Ok((of(&|_| true), of(&|kind| kind == ParkKind::Conflict.as_str())))
    }

    /// Keeps who decided what about which stream, and why.
    pub(crate) async fn audit(
        &mut self,
        ledger: &Ledger,
        stream: Option<&ParkedStream>,
        action: &str,
        reason: &str,
        actor: &str,
    ) -> Result<(), Error> {
        let note = query(
            "INSERT INTO projector_audit (projection, stream_id, version, event_id, action, reason,
                                          error, login)
             VALUES (?, ?, ?, ?, ?, ?, ?, CONCAT(?, ' as ', USER()))",
        )
        .bind(ledger.projection())
        .bind(stream.map(|stream| stream.stream_id.as_str().to_owned()))
        .bind(stream.map(|stream| stream.version.get()))
        .bind(stream.map(|stream| stream.event_id.uuid()))
        .bind(action)
        .bind(reason)
        .bind(stream.map(|stream| stream.reason.clone()))
        .bind(actor)
        .execute(&mut self.connection);
        within("writing the audit", note).await.map(drop)
    }

    /// Stops a projection, or lets it go on. Says whether that changed anything.
    pub(crate) async fn set_paused(
        &mut self,
        ledger: &Ledger,
        reason: Option<&str>,
    ) -> Result<bool, Error> {
        let update = query(
            "UPDATE projector_projections
             SET paused_reason = ?, paused_at = IF(? IS NULL, NULL, UTC_TIMESTAMP(6))
             WHERE name = ? AND (paused_reason IS NULL) <> (? IS NULL)",
        )
        .bind(reason)
        .bind(reason)
        .bind(ledger.projection())
        .bind(reason)
        .execute(&mut self.connection);
        Ok(within("pausing or resuming", update).await?.rows_affected() > 0)
    }

    /// Why a projection is paused, and since when.
    pub(crate) async fn paused(
        &mut self,
        ledger: &Ledger,
    ) -> Result<Option<(String, DateTime<Utc>)>, Error> {
        let read = query_as(
            "SELECT paused_reason, paused_at FROM projector_projections
             WHERE name = ? AND paused_reason IS NOT NULL",
        )
        .bind(ledger.projection())
        .fetch_optional(&mut self.connection);
        let found: Option<(String, NaiveDateTime)> = within("reading a projection", read).await?;
        Ok(found.map(|(reason, since)| (reason, since.and_utc())))
    }
}

/// Only this module writes the rows, from the same types.
fn parked(row: ParkedRow) -> Option<ParkedStream> {
    let (stream_id, version, event_id, event_type, position, kind, reason, applied, attempts, at) =
        row;
    Some(ParkedStream {
        stream_id: StreamId::new(stream_id).ok()?,
        version: StreamVersion::new(i64::try_from(version).ok()?).ok()?,
        event_id: EventId::new(event_id).ok()?,
        event_type: EventType::new(event_type).ok()?,
        position: position.and_then(|number| Position::new(i64::try_from(number).ok()?).ok()),
        kind: ParkKind::named(&kind),
        reason,
        applied_event_id: applied,
        attempts,
        parked_at: at.and_utc(),
    })
}
