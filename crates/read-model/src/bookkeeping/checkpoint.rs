//! The checkpoint: how far a projection has applied the event store.

use domain_events::{EventId, Landmark, Position};
use sqlx::mysql::{MySqlArguments, MySqlConnection};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, MySql, SqlSafeStr, SqlStr};
use uuid::Uuid;

use super::Ledger;
use crate::session::within;
use crate::{Error, Session};

/// How far a projection has applied the event store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every event up to this position is known to be applied.
    pub position: Position,
    /// The position up to which history must be replayed before deliveries are applied; `None` if no replay
    /// is due.
    pub replay_until: Option<Position>,
    /// Identifies these tables: tables that a rebuild puts in their place have another epoch.
    pub epoch: Uuid,
    /// The last event at or before the checkpoint when it was moved; `None` if an earlier release moved it.
    pub landmark: Option<Landmark>,
    /// The run of the PostgreSQL server in which the applied events were last found in the event store.
    pub server_run: Option<Uuid>,
}

/// The statements of one projection's checkpoint.
#[derive(Clone)]
pub(crate) struct CheckpointTable {
    pub(crate) name: String,
    read_checkpoint: SqlStr,
    read_epoch: SqlStr,
    move_checkpoint: SqlStr,
    move_checkpoint_of: SqlStr,
    note_server_run: SqlStr,
    reset: SqlStr,
    add_healed: SqlStr,
    read_healed: SqlStr,
    begin_replay: SqlStr,
    end_replay: SqlStr,
}

/// The assignments that move the checkpoint forward. Their parameters: the position, and three times the landmark:
/// position, id and position.
const MOVE: &str = "position = GREATEST(position, ?),
    landmark_id = IF(COALESCE(landmark_position, 0) < ?, ?, landmark_id),
    landmark_position = GREATEST(COALESCE(landmark_position, 0), ?)";

impl CheckpointTable {
    pub(crate) fn of(projection: &str) -> Self {
        let name = format!("{projection}__checkpoint");
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        Self {
            read_checkpoint: sql(format!(
                "SELECT position, replay_until, epoch, landmark_position, landmark_id, server_run
                 FROM {name} WHERE id = 1"
            )),
            read_epoch: sql(format!("SELECT epoch FROM {name} WHERE id = 1")),
            // MySQL assigns from left to right: the id is compared with the landmark before.
            move_checkpoint: sql(format!("UPDATE {name} SET {MOVE} WHERE id = 1")),
            move_checkpoint_of: sql(format!(
                "UPDATE {name} SET {MOVE} WHERE id = 1 AND epoch = ?"
            )),
            // The order of positions begins anew at the landmark: the new run may give out positions behind it
            // that a previous run gave to transactions which were rolled back.
            note_server_run: sql(format!(
                "UPDATE {name}
                 SET server_run = ?, position = LEAST(position, COALESCE(landmark_position, position))
                 WHERE id = 1 AND epoch = ?"
            )),
            reset: sql(format!(
                "UPDATE {name}
                 SET position = ?, landmark_position = ?, landmark_id = ?, server_run = ?
                 WHERE id = 1 AND epoch = ?"
            )),
            add_healed: sql(format!("UPDATE {name} SET healed = healed + ? WHERE id = 1")),
            read_healed: sql(format!("SELECT healed FROM {name} WHERE id = 1")),
            begin_replay: sql(format!(
                "INSERT INTO {name} (id, position, replay_until) VALUES (1, 0, ?) AS new
                 ON DUPLICATE KEY UPDATE replay_until =
                     GREATEST(COALESCE({name}.replay_until, 0), new.replay_until)"
            )),
            // A longer replay may have been requested since.
            end_replay: sql(format!(
                "UPDATE {name} SET replay_until = NULL WHERE id = 1 AND replay_until <= ?"
            )),
            name,
        }
    }

    fn checkpoint(&self, row: CheckpointRow) -> Result<Checkpoint, Error> {
        let (position, replay_until, epoch, landmark_position, landmark_id, server_run) = row;
        let landmark = |(position, id)| {
            let event_id =
                EventId::new(id).map_err(|source| Error::row(&self.name, "landmark", source))?;
            Ok::<_, Error>(Landmark { position: self.position(position)?, event_id })
        };
        // Without an event before the checkpoint, both are not set.
        let known = landmark_position.filter(|position| *position > 0).zip(landmark_id);
        Ok(Checkpoint {
            position: self.position(position)?,
            replay_until: replay_until.map(|until| self.position(until)).transpose()?,
            epoch,
            landmark: known.map(landmark).transpose()?,
            server_run,
        })
    }

    pub(crate) fn position(&self, number: u64) -> Result<Position, Error> {
        Position::new(i64::try_from(number).unwrap_or(-1))
            .map_err(|source| Error::row(&self.name, &number.to_string(), source))
    }
}

impl Ledger {
    /// The epoch of the tables in service; `None` for a projection without a checkpoint.
    pub(crate) async fn epoch(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Option<Uuid>, Error> {
        let read = sqlx::query_scalar(self.progress.read_epoch.clone()).fetch_optional(connection);
        within("reading the checkpoint", read).await
    }
}

impl Session {
    /// The checkpoint of a projection; `None` for a new one.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn checkpoint(&mut self, ledger: &Ledger) -> Result<Option<Checkpoint>, Error> {
        let query = sqlx::query_as(ledger.progress.read_checkpoint.clone());
        let found: Option<CheckpointRow> =
            within("reading the checkpoint", query.fetch_optional(&mut self.connection)).await?;
        found.map(|row| ledger.progress.checkpoint(row)).transpose()
    }

    /// Requests a replay of the history up to a position. Until it is complete, no deliveries are applied.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn begin_replay(&mut self, ledger: &Ledger, until: Position) -> Result<(), Error> {
        let query = sqlx::query(ledger.progress.begin_replay.clone()).bind(until.get());
        within("beginning the replay", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Records that the history up to a position was replayed.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn end_replay(&mut self, ledger: &Ledger, until: Position) -> Result<(), Error> {
        let query = sqlx::query(ledger.progress.end_replay.clone()).bind(until.get());
        within("ending the replay", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Adds to the number of healed events: those that no delivery brought and that were read from the
    /// event store.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn add_healed(&mut self, ledger: &Ledger, events: usize) -> Result<(), Error> {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        let add = sqlx::query(ledger.progress.add_healed.clone()).bind(events);
        within("counting healed events", add.execute(&mut self.connection)).await.map(drop)
    }

    /// The number of healed events so far.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn healed(&mut self, ledger: &Ledger) -> Result<u64, Error> {
        let read = sqlx::query_scalar(ledger.progress.read_healed.clone());
        let found: Option<u64> =
            within("reading healed events", read.fetch_optional(&mut self.connection)).await?;
        Ok(found.unwrap_or(0))
    }

    /// Moves the checkpoint forward. A position before the present one has no effect. The landmark is the last known
    /// event at or before the position.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn move_checkpoint(
        &mut self,
        ledger: &Ledger,
        position: Position,
        landmark: Option<Landmark>,
    ) -> Result<(), Error> {
        let query = bind_move(&ledger.progress.move_checkpoint, position, landmark);
        within("moving the checkpoint", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Moves the checkpoint forward, unless other tables are in service than those with this epoch. They may lack
    /// events that were applied to the previous ones.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn move_checkpoint_of(
        &mut self,
        ledger: &Ledger,
        epoch: Uuid,
        position: Position,
        landmark: Option<Landmark>,
    ) -> Result<(), Error> {
        let query = bind_move(&ledger.progress.move_checkpoint_of, position, landmark).bind(epoch);
        within("moving the checkpoint", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Records that the applied events were found in the event store in this run of the server, and moves the
    /// checkpoint back to its landmark.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn note_server_run(
        &mut self,
        ledger: &Ledger,
        epoch: Uuid,
        server_run: Uuid,
    ) -> Result<(), Error> {
        let query =
            sqlx::query(ledger.progress.note_server_run.clone()).bind(server_run).bind(epoch);
        within("recording the server", query.execute(&mut self.connection)).await.map(drop)
    }

    /// Moves the checkpoint to a landmark, forward or back; `None` is the start of the event store.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn reset_checkpoint(
        &mut self,
        ledger: &Ledger,
        epoch: Uuid,
        landmark: Option<Landmark>,
        server_run: Uuid,
    ) -> Result<(), Error> {
        let position = landmark.map(|landmark| landmark.position.get());
        let query = sqlx::query(ledger.progress.reset.clone())
            .bind(position.unwrap_or(0))
            .bind(position)
            .bind(landmark.map(|landmark| landmark.event_id.uuid()))
            .bind(server_run)
            .bind(epoch);
        within("moving the checkpoint", query.execute(&mut self.connection)).await.map(drop)
    }
}

type CheckpointRow = (u64, Option<u64>, Uuid, Option<u64>, Option<Uuid>, Option<Uuid>);

fn bind_move(
    sql: &SqlStr,
    position: Position,
    landmark: Option<Landmark>,
) -> Query<'_, MySql, MySqlArguments> {
    let behind = landmark.map_or(0, |landmark| landmark.position.get());
    sqlx::query(sql.clone())
        .bind(position.get())
        .bind(behind)
        .bind(landmark.map(|landmark| landmark.event_id.uuid()))
        .bind(behind)
}
