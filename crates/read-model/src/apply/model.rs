//! A projection with its tables in service, and the only ways to begin a batch that changes them.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use domain_events::Position;
use projection::{Fault, Projection};

use super::ApplyError;
use crate::batching::Forms;
use crate::binding::Bindings;
use crate::rust_projection::{Registry, RustProjection};
use crate::{
    Batch, Committed, Error, Gate, InService, Ledger, LockMode, Session, Skips, StoredDefinition,
};

/// A projection, and the Rust type that applies its events if it has no SQL handlers.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The content of its files.
    pub projection: Projection,
    /// The Rust type that applies its events instead of handlers.
    pub(crate) code: Option<Arc<dyn RustProjection>>,
}

impl Definition {
    /// The same projection with other files, as they were stored. They hold handlers in SQL.
    ///
    /// # Errors
    ///
    /// Every mistake in the files.
    pub fn with_files(&self, stored: &StoredDefinition) -> Result<Self, Vec<Fault>> {
        let projection = self.projection.with_files(&stored.files, stored.strict, stored.order)?;
        Ok(Self { projection, code: None })
    }
}

/// Reads the projections in `folder`: all of them, or those in `names` if it is not empty. `code` has the
/// types of those in Rust.
///
/// # Errors
///
/// Every mistake in every file.
pub fn load(
    folder: &Path,
    names: &[String],
    code: &Registry,
) -> Result<Vec<Definition>, Vec<Fault>> {
    let projections = projection::load_all(folder, names, &code.names())?;
    let definition = |projection: Projection| {
        let code = code.get(&projection.name);
        Definition { projection, code }
    };
    Ok(projections.into_iter().map(definition).collect())
}

/// How the files of a program relate to the definition in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// They are in service.
    InService,
    /// Other handlers are in service, for the same tables.
    OtherHandlers,
    /// The tables in service were created from another `tables.sql`.
    OtherTables,
}

/// A projection, its bookkeeping, and the state of its tables in service.
pub struct ReadModel {
    /// The projection.
    pub projection: Projection,
    pub(super) code: Option<Arc<dyn RustProjection>>,
    /// Its bookkeeping.
    pub ledger: Ledger,
    forms: RwLock<Arc<Forms>>,
    bindings: RwLock<Arc<Bindings>>,
    /// The tables in service, as of the last [`ReadModel::prepare`].
    in_service: RwLock<Option<InService>>,
    /// The events that a person has left out, as of the last [`ReadModel::prepare`]. An event that is left
    /// out later is not applied to these tables any more, because the same transaction passes it.
    skips: RwLock<Arc<Skips>>,
    /// Runs every event alone, to compare the result with that of sets.
    #[cfg(test)]
    pub(super) one_by_one: bool,
}

impl ReadModel {
    /// A read model whose tables have not been read yet. Call [`ReadModel::prepare`] before the first
    /// batch.
    pub fn new(definition: Definition) -> Self {
        let Definition { projection, code } = definition;
        let ledger = Ledger::of(&projection.name);
        Self {
            projection,
            code,
            ledger,
            forms: RwLock::default(),
            bindings: RwLock::default(),
            in_service: RwLock::default(),
            skips: RwLock::default(),
            #[cfg(test)]
            one_by_one: false,
        }
    }

    /// The name of the projection.
    pub fn name(&self) -> &str {
        &self.projection.name
    }

    /// A copy of the definition, for another read model of the same projection.
    pub fn definition(&self) -> Definition {
        Definition { projection: self.projection.clone(), code: self.code.clone() }
    }

    /// Reads the state of the tables in service, and derives which handlers can run as sets.
    ///
    /// # Errors
    ///
    /// When MySQL fails, or [`Error::SwapNotRecorded`].
    pub async fn prepare(&self, session: &mut Session) -> Result<(), Error> {
        // Read before the forms: if a rebuild replaces the tables in between, the gate has another
        // generation.
        let found = session.in_service(&self.ledger).await?;
        let skips = Arc::new(session.skips(&self.ledger).await?);
        *self.skips.write().unwrap_or_else(PoisonError::into_inner) = skips;
        *self.in_service.write().unwrap_or_else(PoisonError::into_inner) = Some(found);
        let tables = session.table_infos(&self.projection).await?;
        let packet = session.max_allowed_packet().await?;
        let forms = Forms::of_tables(&self.projection, &tables).within_packet(packet);
        let bindings = Arc::new(Bindings::of_tables(&self.projection, &tables));
        *self.forms.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(forms);
        *self.bindings.write().unwrap_or_else(PoisonError::into_inner) = bindings;
        Ok(())
    }

    /// Begins a batch of deliveries or of history.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Paused`] while the projection is paused; [`ApplyError::Replaced`] if the tables in
    /// service are not those that [`ReadModel::prepare`] has read; [`ApplyError::Server`] when MySQL fails.
    pub async fn begin<'s>(&'s self, session: &'s mut Session) -> Result<Admitted<'s>, ApplyError> {
        let (batch, gate) = self.admit(session, self.lock_mode()).await?;
        if let Some(reason) = gate.paused {
            batch.rollback().await?;
            return Err(ApplyError::Paused { reason });
        }
        Ok(batch)
    }

    /// Begins a batch for a command of a person, even while the projection is paused.
    ///
    /// # Errors
    ///
    /// As [`ReadModel::begin`], except [`ApplyError::Paused`].
    pub async fn begin_command<'s>(
        &'s self,
        session: &'s mut Session,
    ) -> Result<Admitted<'s>, ApplyError> {
        Ok(self.admit(session, self.lock_mode()).await?.0)
    }

    /// Begins a batch for a command of a person. No other batch runs until it ends.
    ///
    /// # Errors
    ///
    /// As [`ReadModel::begin_command`].
    pub async fn begin_alone<'s>(
        &'s self,
        session: &'s mut Session,
    ) -> Result<Admitted<'s>, ApplyError> {
        Ok(self.admit(session, LockMode::Exclusive).await?.0)
    }

    /// Passes the gate, and then checks that the tables in service match the handlers.
    async fn admit<'s>(
        &'s self,
        session: &'s mut Session,
        mode: LockMode,
    ) -> Result<(Admitted<'s>, Gate), ApplyError> {
        let (mut batch, gate) = session.begin(&self.ledger, mode).await?;
        match self.tables_are_current(&mut batch, &gate).await {
            Ok(true) => Ok((Admitted(batch), gate)),
            Ok(false) => {
                batch.rollback().await?;
                Err(ApplyError::Replaced)
            }
            Err(error) => {
                // An error of the rollback would hide the cause. The caller drops the session anyway.
                drop(batch.rollback().await);
                Err(error.into())
            }
        }
    }

    async fn tables_are_current(&self, batch: &mut Batch<'_>, gate: &Gate) -> Result<bool, Error> {
        let Some(known) = self.known() else { return Ok(false) };
        if known.generation != gate.generation || self.files_of(&known) != Files::InService {
            return Ok(false);
        }
        // A rebuild raises the generation only after the swap. In between, only the epoch, which is stored
        // in the tables, shows whether they were swapped.
        Ok(!gate.swapping || batch.epoch().await? == known.epoch)
    }

    fn known(&self) -> Option<InService> {
        self.in_service.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the files of this program relate to the definition in service, as of the last
    /// [`ReadModel::prepare`].
    pub fn files(&self) -> Files {
        self.known().map_or(Files::InService, |known| self.files_of(&known))
    }

    fn files_of(&self, known: &InService) -> Files {
        match &known.definition {
            Some(hash) if *hash != self.projection.definition_hash => {
                if known.tables_hash == self.projection.tables_hash {
                    Files::OtherHandlers
                } else {
                    Files::OtherTables
                }
            }
            // Releases before the definition was recorded left none.
            _ => Files::InService,
        }
    }

    /// The generation of the tables as of the last [`ReadModel::prepare`].
    pub fn generation(&self) -> Option<u32> {
        self.known().map(|known| known.generation)
    }

    /// Deliveries up to this position are looked up in the event store before they are applied, as of the last
    /// [`ReadModel::prepare`]; `None` if no delivery is.
    pub fn compared_until(&self) -> Option<Position> {
        self.known().and_then(|known| known.compared_until)
    }

    /// The events that a person has left out, as of the last [`ReadModel::prepare`].
    pub fn skips(&self) -> Arc<Skips> {
        Arc::clone(&self.skips.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The batch forms of the handlers' statements.
    pub fn forms(&self) -> Arc<Forms> {
        Arc::clone(&self.forms.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How the values of events are bound.
    pub(super) fn bindings(&self) -> Arc<Bindings> {
        Arc::clone(&self.bindings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether events of different streams must be applied in the order of the event store.
    pub fn is_ordered(&self) -> bool {
        self.forms().is_ordered()
    }

    /// The number of batches that may run in parallel for one queue. It is 1 if events of several streams
    /// change the same rows, because two batches would wait for each other.
    pub fn lanes(&self) -> u16 {
        match self.lock_mode() {
            LockMode::Shared => self.projection.lanes,
            LockMode::Exclusive => 1,
        }
    }

    fn lock_mode(&self) -> LockMode {
        self.forms().lock_mode()
    }
}

/// A batch that may run handlers: it has passed the gate, and the tables in service match the handlers.
/// Only [`ReadModel`] can create one.
pub struct Admitted<'s>(Batch<'s>);

impl Admitted<'_> {
    /// As [`Batch::commit`].
    ///
    /// # Errors
    ///
    /// As [`Batch::commit`].
    pub async fn commit(self) -> Result<Committed, Error> {
        self.0.commit().await
    }

    /// As [`Batch::rollback`].
    ///
    /// # Errors
    ///
    /// As [`Batch::rollback`].
    pub async fn rollback(self) -> Result<(), Error> {
        self.0.rollback().await
    }
}

impl<'s> Deref for Admitted<'s> {
    type Target = Batch<'s>;

    fn deref(&self) -> &Batch<'s> {
        &self.0
    }
}

impl DerefMut for Admitted<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
