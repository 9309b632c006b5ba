//! The definition in service: the files whose handlers keep a read model up to date.
//!
//! Each definition that was ever in service is stored, so that a rollback has the handlers of the previous
//! tables. A change of the definition in service raises the generation, as a rebuild does. So the gate
//! admits no batch with other handlers.

use std::collections::BTreeMap;

use projection::{Order, Projection};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use uuid::Uuid;

use crate::batching::quoted;
use crate::session::within;
use crate::{Batch, Error, JobState, Ledger, LockMode, Session};

/// What happens to the files of a program that wants to apply events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// They are in service.
    InService,
    /// They were never in service, or a person asks for them: they are put in service.
    New,
    /// They were in service, and others have replaced them. Only a person puts them back.
    Superseded,
    /// Their `tables.sql` is not that of the tables in service. Only a rebuild puts them in service.
    OtherTables,
    /// A rebuild or a rollback is about to decide which files are in service.
    Rebuilding,
}

/// A definition that was in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDefinition {
    /// The text of its files by name.
    pub files: BTreeMap<String, String>,
    /// Whether an event was refused whose value MySQL would change to fit a column.
    pub strict: bool,
    /// The order of events that it asks for; `None` if its tables decide.
    pub order: Option<Order>,
    /// Whether a Rust type applied the events. The files then hold no handlers.
    pub in_rust: bool,
}

type FactsRow = (Option<String>, String, bool, bool, Option<String>, Option<String>);

/// What decides about the files of a program.
struct Facts {
    served: Option<String>,
    tables: String,
    swapping: bool,
    was_served: bool,
    /// The state of the last rebuild, and its definition.
    job: Option<(String, String)>,
}

impl Facts {
    async fn read(
        connection: &mut MySqlConnection,
        ledger: &Ledger,
        projection: &Projection,
    ) -> Result<Self, Error> {
        let read = query_as(
            "SELECT p.definition_hash, p.tables_hash, p.swapping, d.hash IS NOT NULL, r.state,
                    r.definition_hash
             FROM projector_projections AS p
             LEFT JOIN projector_definitions AS d ON d.projection = p.name AND d.hash = ?
             LEFT JOIN projector_rebuilds AS r ON r.projection = p.name
             WHERE p.name = ?",
        )
        .bind(&projection.definition_hash)
        .bind(ledger.projection())
        .fetch_optional(connection);
        let found: Option<FactsRow> = within("reading the definition in service", read).await?;
        let (served, tables, swapping, was_served, state, of) =
            found.ok_or_else(|| ledger.not_migrated())?;
        Ok(Self { served, tables, swapping, was_served, job: state.zip(of) })
    }

    fn decide(&self, projection: &Projection, by_person: bool) -> Service {
        let own = &projection.definition_hash;
        if self.served.as_ref() == Some(own) {
            return Service::InService;
        }
        if self.swapping || self.job.as_ref().is_some_and(|job| is_deciding(job, own)) {
            return Service::Rebuilding;
        }
        if self.tables != projection.tables_hash {
            return Service::OtherTables;
        }
        // Releases before the definition was recorded left none.
        if self.was_served && self.served.is_some() && !by_person {
            return Service::Superseded;
        }
        Service::New
    }
}

/// Whether an unfinished rebuild decides about the definition `own`.
fn is_deciding((state, of): &(String, String), own: &str) -> bool {
    match JobState::parse(state) {
        Some(JobState::RollingBack) => true,
        Some(state) => state.is_building() && of == own,
        None => false,
    }
}

impl Session {
    /// Says whether the files of a projection may apply events, and puts them in service if they are new.
    /// `person` is the person who asks for files that may have been superseded.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn put_in_service(
        &mut self,
        ledger: &Ledger,
        projection: &Projection,
        person: Option<&str>,
    ) -> Result<Service, Error> {
        let by_person = person.is_some();
        // Read without a lock first: an instance that waits must not close the gate again and again.
        let facts = Facts::read(&mut self.connection, ledger, projection).await?;
        match facts.decide(projection, by_person) {
            Service::InService => {
                store(&mut self.connection, projection, false).await?;
                return Ok(Service::InService);
            }
            Service::New => {}
            other => return Ok(other),
        }
        let (mut batch, _gate) = self.begin(ledger, LockMode::Exclusive).await?;
        let facts = Facts::read(batch.connection(), ledger, projection).await?;
        let decided = facts.decide(projection, by_person);
        if decided == Service::New {
            let was = facts.served.as_deref().map_or("unknown files", short);
            let reason = format!("{} after {was}", short(&projection.definition_hash));
            let serve = query(
                "UPDATE projector_projections
                 SET generation = generation + 1, definition_hash = ? WHERE name = ?",
            )
            .bind(&projection.definition_hash)
            .bind(&projection.name)
            .execute(&mut *batch.connection());
            within("putting files in service", serve).await?;
            store(batch.connection(), projection, true).await?;
            let actor = person.unwrap_or("a projector at its start");
            ledger.audit(batch.connection(), None, "adopt", &reason, actor).await?;
        }
        batch.commit().await?;
        Ok(decided)
    }

    /// Records that the tables of this database are for the files of `projection`. For tables that are not
    /// in service.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn set_definition(&mut self, projection: &Projection) -> Result<(), Error> {
        let set = query(
            "UPDATE projector_projections SET definition_hash = ?, tables_hash = ? WHERE name = ?",
        )
        .bind(&projection.definition_hash)
        .bind(&projection.tables_hash)
        .bind(&projection.name)
        .execute(&mut self.connection);
        within("recording a definition", set).await.map(drop)
    }

    /// Stores the files of a projection, which are in service.
    pub(crate) async fn store_definition(&mut self, projection: &Projection) -> Result<(), Error> {
        store(&mut self.connection, projection, false).await
    }

    /// The files of a definition that was in service.
    ///
    /// # Errors
    ///
    /// When MySQL fails, or [`Error::StoredFiles`].
    pub async fn stored_definition(
        &mut self,
        ledger: &Ledger,
        hash: &str,
    ) -> Result<Option<StoredDefinition>, Error> {
        let read = query_as(
            "SELECT files, strict, event_order, in_rust FROM projector_definitions
             WHERE projection = ? AND hash = ?",
        )
        .bind(ledger.projection())
        .bind(hash)
        .fetch_optional(&mut self.connection);
        let found: Option<(String, bool, Option<String>, bool)> =
            within("reading a definition", read).await?;
        let stored = |(files, strict, order, in_rust): (String, bool, Option<String>, bool)| {
            let unreadable =
                |_json| Error::StoredFiles { projection: ledger.projection().to_owned() };
            let files = serde_json::from_str(&files).map_err(unreadable)?;
            let order = order.as_deref().and_then(Order::of_name);
            Ok(StoredDefinition { files, strict, order, in_rust })
        };
        found.map(stored).transpose()
    }

    /// The definition that was in service with the previous tables, which are in the database `old`. `None`
    /// if nobody recorded it: an earlier release took them out of service.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn previous_definition(
        &mut self,
        ledger: &Ledger,
        old: &str,
    ) -> Result<Option<String>, Error> {
        let read = query_as(
            "SELECT previous_hash, previous_epoch FROM projector_projections WHERE name = ?",
        )
        .bind(ledger.projection())
        .fetch_optional(&mut self.connection);
        let found: Option<(Option<String>, Option<Uuid>)> =
            within("reading the previous definition", read).await?;
        let Some((Some(hash), epoch)) = found else { return Ok(None) };
        let found = self.epoch_in(ledger, old).await?;
        Ok((found == epoch).then_some(hash))
    }

    /// The epoch of the tables in another database; `None` without a checkpoint.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn epoch_in(
        &mut self,
        ledger: &Ledger,
        database: &str,
    ) -> Result<Option<Uuid>, Error> {
        let (database, table) = (quoted(database), ledger.checkpoint_table());
        let sql = format!("SELECT epoch FROM {database}.{table} WHERE id = 1");
        let read = query_scalar(AssertSqlSafe(sql)).fetch_optional(&mut self.connection);
        within("reading the checkpoint", read).await
    }
}

impl Batch<'_> {
    /// Records that other tables are in service, for the files of `projection`, so that every instance reads
    /// them again. `previous` is the epoch of the tables that they replace. The batch must hold the gate
    /// exclusively.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn next_generation(
        &mut self,
        projection: &Projection,
        previous: Option<Uuid>,
    ) -> Result<(), Error> {
        // MySQL assigns from left to right.
        let note = query(
            "UPDATE projector_projections
             SET generation = generation + 1, previous_hash = definition_hash, previous_epoch = ?,
                 definition_hash = ?, tables_hash = ?, swapping = FALSE
             WHERE name = ?",
        )
        .bind(previous)
        .bind(&projection.definition_hash)
        .bind(&projection.tables_hash)
        .bind(&projection.name)
        .execute(&mut *self.connection());
        within("recording the generation", note).await?;
        store(self.connection(), projection, true).await
    }
}

/// Stores the files of a projection. `now` means that they have just been put in service.
async fn store(
    connection: &mut MySqlConnection,
    projection: &Projection,
    now: bool,
) -> Result<(), Error> {
    let files = serde_json::json!(*projection.files).to_string();
    let store = query(
        "INSERT INTO projector_definitions (projection, hash, files, strict, event_order, in_rust, served_at)
         VALUES (?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6)) AS new
         ON DUPLICATE KEY UPDATE
             served_at = IF(?, new.served_at, projector_definitions.served_at)",
    )
    .bind(&projection.name)
    .bind(&projection.definition_hash)
    .bind(files)
    .bind(projection.strict)
    .bind(projection.order.map(Order::name))
    .bind(projection.is_rust)
    .bind(now)
    .execute(connection);
    within("storing a definition", store).await.map(drop)
}

/// The beginning of a hash, for messages.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
