//! Parked streams, paused projections, and the audit of operators' decisions.

use chrono::{DateTime, NaiveDateTime, Utc};
use domain_events::{EventId, EventType, Position, StreamId, StreamVersion};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr, query, query_as};
use uuid::Uuid;

use crate::session::{from_row, within};
use crate::{Error, Ledger, Session};

/// Why a stream was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkKind {
    /// MySQL refused a statement of the handler, or the statement did not find the required number of rows.
    Refused,
    /// The event lacks the part that a parameter names, or has a value that MySQL cannot hold.
    Parameter,
    /// No handler accepts its schema version.
    Schema,
    /// Another event with the same version was applied.
    Conflict,
}

impl ParkKind {
    /// The name in the table.
    pub fn as_str(self) -> &'static str {
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

/// A parked stream, and the event that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParkedStream {
    /// The stream.
    #[serde(serialize_with = "text")]
    pub stream_id: StreamId,
    /// The version of the event.
    #[serde(serialize_with = "version")]
    pub version: StreamVersion,
    /// The id of the event.
    #[serde(serialize_with = "text")]
    pub event_id: EventId,
    /// The type of the event.
    #[serde(serialize_with = "text")]
    pub event_type: EventType,
    /// The position of the event, if known.
    #[serde(serialize_with = "position")]
    pub position: Option<Position>,
    /// The kind of the reason.
    pub kind: ParkKind,
    /// The reason as a sentence, with file and line. It never contains a value of the event.
    pub reason: String,
    /// In a conflict, the applied event with the same version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_event_id: Option<Uuid>,
    /// The number of attempts to apply the event.
    pub attempts: u32,
    /// The time when the stream was parked.
    pub parked_at: DateTime<Utc>,
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
pub(crate) struct ParkedTable {
    pub(crate) name: String,
    park: SqlStr,
    recently_parked: SqlStr,
    list: SqlStr,
    count: SqlStr,
    unpark_stream: SqlStr,
    forget_stream: SqlStr,
    unpark_row: SqlStr,
}

impl ParkedTable {
    pub(crate) fn of(projection: &str, streams: &str) -> Self {
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
            name,
        }
    }
}

type ParkedRow =
    (String, u64, Uuid, String, Option<u64>, String, String, Option<Uuid>, u32, NaiveDateTime);

impl Ledger {
    /// Records a parked stream, or a further attempt on one.
    pub(crate) async fn park(
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

    pub(crate) async fn recently_parked(
        &self,
        connection: &mut MySqlConnection,
        seconds: u64,
    ) -> Result<u64, Error> {
        let count = sqlx::query_scalar(self.parked.recently_parked.clone()).bind(seconds);
        let count: i64 = within("counting parked streams", count.fetch_one(connection)).await?;
        Ok(count.unsigned_abs())
    }

    pub(crate) async fn unpark(
        &self,
        connection: &mut MySqlConnection,
        stream_id: &StreamId,
    ) -> Result<(), Error> {
        self.release(connection, stream_id, &self.parked.unpark_stream).await
    }

    pub(crate) async fn forget(
        &self,
        connection: &mut MySqlConnection,
        stream_id: &StreamId,
    ) -> Result<(), Error> {
        self.release(connection, stream_id, &self.parked.forget_stream).await
    }

    pub(crate) async fn audit(
        &self,
        connection: &mut MySqlConnection,
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
        .bind(self.projection())
        .bind(stream.map(|stream| stream.stream_id.as_str().to_owned()))
        .bind(stream.map(|stream| stream.version.get()))
        .bind(stream.map(|stream| stream.event_id.uuid()))
        .bind(action)
        .bind(reason)
        .bind(stream.map(|stream| stream.reason.clone()))
        .bind(actor)
        .execute(connection);
        within("recording the audit", note).await.map(drop)
    }

    async fn release(
        &self,
        connection: &mut MySqlConnection,
        stream_id: &StreamId,
        stream: &SqlStr,
    ) -> Result<(), Error> {
        for sql in [stream, &self.parked.unpark_row] {
            let release = query(sql.clone()).bind(stream_id.as_str()).execute(&mut *connection);
            within("releasing a parked stream", release).await?;
        }
        Ok(())
    }
}

/// The streams that are parked for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParkedReason {
    /// The reason as a sentence.
    pub reason: String,
    /// The number of streams.
    pub streams: i64,
    /// The first of them by id.
    pub first_stream: String,
    /// The version of the event that it could not apply.
    pub first_version: u64,
    /// The id of that event.
    pub first_event: String,
}

from_row!(ParkedReason { reason, streams, first_stream, first_version, first_event });

impl Session {
    /// The reasons for which streams are parked: at most a hundred, the most frequent first.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn parked_reasons(&mut self, ledger: &Ledger) -> Result<Vec<ParkedReason>, Error> {
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
        crate::session::within_minutes(read).await
    }

    /// The parked streams of a projection, in the order in which they were parked.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn parked(&mut self, ledger: &Ledger) -> Result<Vec<ParkedStream>, Error> {
        let read = query_as(ledger.parked.list.clone()).fetch_all(&mut self.connection);
        let rows: Vec<ParkedRow> = within("listing parked streams", read).await?;
        rows.into_iter().map(|row| parked(ledger, row)).collect()
    }

    /// The number of parked streams, and how many of them have a conflict.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn count_parked(&mut self, ledger: &Ledger) -> Result<(i64, i64), Error> {
        let read = query_as(ledger.parked.count.clone()).fetch_all(&mut self.connection);
        let rows: Vec<(String, i64)> = within("counting parked streams", read).await?;
        let of = |wanted: &dyn Fn(&str) -> bool| {
            rows.iter().filter(|(kind, _)| wanted(kind)).map(|(_, count)| count).sum()
        };
        Ok((of(&|_| true), of(&|kind| kind == ParkKind::Conflict.as_str())))
    }

    /// Records an operator's decision about a stream or a projection.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn audit(
        &mut self,
        ledger: &Ledger,
        stream: Option<&ParkedStream>,
        action: &str,
        reason: &str,
        actor: &str,
    ) -> Result<(), Error> {
        ledger.audit(&mut self.connection, stream, action, reason, actor).await
    }

    /// Pauses a projection if there is a reason, and resumes it otherwise. Returns false if it already was
    /// in that state.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn set_paused(
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

    /// The reason and the start of the pause, if the projection is paused.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn paused(
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

fn parked(ledger: &Ledger, row: ParkedRow) -> Result<ParkedStream, Error> {
    let (stream_id, version, event_id, event_type, position, kind, reason, applied, attempts, at) =
        row;
    let signed = |number: u64| i64::try_from(number).unwrap_or(-1);
    let read = || {
        Ok(ParkedStream {
            stream_id: StreamId::new(stream_id.as_str())?,
            version: StreamVersion::new(signed(version))?,
            event_id: EventId::new(event_id)?,
            event_type: EventType::new(event_type)?,
            position: position.map(|number| Position::new(signed(number))).transpose()?,
            kind: ParkKind::named(&kind),
            reason,
            applied_event_id: applied,
            attempts,
            parked_at: at.and_utc(),
        })
    };
    read().map_err(|source| Error::row(&ledger.parked.name, &stream_id, source))
}
