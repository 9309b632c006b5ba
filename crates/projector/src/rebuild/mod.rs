//! Rebuilds a read model beside the live one, and swaps the two.
//!
//! The new tables have the same names in another database, so the code that applies events works there
//! unchanged. At the end, one statement swaps all tables of the projection, its bookkeeping included, while no
//! batch runs.
//!
//! A rebuild is a *job*, a row in MySQL. The session that holds its lock owns the job and runs it (`job`): a
//! session of the command, or of any projector with the same files. If the owner dies, another one continues.
//!
//! **Invariant:** whatever interrupts a rebuild, all previous tables are in service, or all new ones. Events
//! that the tables in service lack are found between their own checkpoint and the end of the event store.

mod attached;
mod cut_over;
mod dry_run;
mod error;
mod findings;
mod in_place;
mod job;
mod maintenance;
mod progress;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use daemon::backoff::Backoff;
use daemon::chain;
use read_model::{
    Databases, Definition, Job, JobState, Ledger, Lock, ReadModel, RebuildOptions, Session,
    all_tables,
};
use tokio::time::sleep;

use self::cut_over::tables_of_every_release;
pub(crate) use self::error::Error;
pub(crate) use self::findings::Findings;
pub(crate) use self::in_place::Folded;
use self::job::{Attempt, Owned};
pub(crate) use self::maintenance::maintain;
use self::progress::RebuildPace;
pub(crate) use self::progress::{Report, text};
use crate::failpoints::failpoint;
use crate::history::{Decided, FENCE_PATIENCE, History, Target, replay};

/// When fewer positions than this are left, the swap can begin: it applies the rest.
const NEAR: i64 = 2_000;
/// The most replays before the swap begins anyway.
const ROUNDS: u32 = 10;
/// How often to check the state of a rebuild that another process runs.
const WATCH: Duration = Duration::from_secs(1);
/// How long the other process may take to record its progress, or to notice that its rebuild was cancelled.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause after a failure of a server.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// Changes the tables of a projection as a whole.
pub(crate) struct Rebuilder {
    pub(crate) definition: Definition,
    pub(crate) mysql: read_model::Options,
    pub(crate) store: event_store::Options,
    pub(crate) databases: Databases,
    pub(crate) report: Report,
    /// Names this process in the state of the rebuild.
    pub(crate) host: String,
}

/// Whether this process got the lock of a rebuild.
enum Ownership<'r> {
    Ours(Box<Owned<'r>>),
    /// Another process holds the lock; the state of its job, if there is one.
    Theirs(Option<Job>),
}

impl Rebuilder {
    /// A read model whose columns are not read yet.
    pub(crate) fn model(&self) -> ReadModel {
        ReadModel::new(self.definition.clone())
    }

    fn name(&self) -> &str {
        &self.definition.projection.name
    }

    /// All tables of the projection, its bookkeeping included.
    fn tables(&self, ledger: &Ledger) -> Vec<String> {
        all_tables(&self.definition.projection, ledger)
    }

    /// Rebuilds the read model and puts it in service. Continues an interrupted rebuild. While another process
    /// runs the rebuild, waits and shows its progress.
    ///
    /// `drop_extras` accepts that columns, indexes and partitions go that somebody has added to the live tables.
    pub(crate) async fn rebuild(
        &self,
        options: RebuildOptions,
        drop_extras: bool,
    ) -> Result<(), Error> {
        let mut begun = false;
        let mut watched = Duration::ZERO;
        let mut backoff = Backoff::reconnect(RETRY_MAX);
        loop {
            match self.attempt(options, drop_extras, &mut begun).await {
                Ok(Attempt::Ended) => return Ok(()),
                Ok(Attempt::Elsewhere(job)) => {
                    let job = job.filter(|job| job.state.is_building());
                    match &job {
                        Some(job) => self.report.progress(&job.progress),
                        None => watched += WATCH,
                    }
                    begun |= job.is_some();
                    if watched > PATIENCE {
                        return Err(self.locked());
                    }
                    sleep(WATCH).await;
                }
                Err(error) if begun && error.is_transient() => {
                    self.report.say(&format!(
                        "the rebuild of {} was interrupted and is tried again: {}",
                        self.name(),
                        chain(&error)
                    ));
                    sleep(backoff.failed()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        options: RebuildOptions,
        drop_extras: bool,
        begun: &mut bool,
    ) -> Result<Attempt, Error> {
        let mut owned = match self.try_own().await? {
            Ownership::Ours(owned) => owned,
            Ownership::Theirs(job) => return Ok(Attempt::Elsewhere(job)),
        };
        owned.session.require_tables(&self.definition.projection, &owned.live.ledger).await?;
        let hash = &self.definition.projection.definition_hash;
        let skipped_since = owned.session.has_skipped_since_job(&owned.live.ledger).await?;
        match &owned.job {
            // The rebuild that this command waited for has ended in another process, or was cancelled.
            Some(job) if *begun && !job.state.is_unfinished() => return owned.outcome(),
            Some(job) if job.state == JobState::RollingBack => {
                self.continue_rollback(owned).await?;
                return Ok(Attempt::Ended);
            }
            Some(job)
                if (job.state.is_building() || job.state == JobState::Failed)
                    && job.definition_hash == *hash
                    && !(job.state == JobState::Failed && skipped_since) =>
            {
                if job.state == JobState::Failed {
                    owned.require_swappable().await?;
                }
                owned.session.adopt_job(&owned.live.ledger, options).await?;
            }
            _ => {
                owned.require_swappable().await?;
                owned.require_no_extras(drop_extras).await?;
                owned.session.plan_job(&owned.live.ledger, hash, options).await?;
            }
        }
        failpoint!("rebuild::planned");
        *begun = true;
        owned.run().await?;
        Ok(Attempt::Ended)
    }

    /// Continues an interrupted rebuild that no other process runs. Returns whether there was one.
    pub(crate) async fn resume(&self) -> Result<bool, Error> {
        let Ownership::Ours(mut owned) = self.try_own().await? else { return Ok(false) };
        match &owned.job {
            Some(job) if job.state == JobState::RollingBack => {
                return match self.continue_rollback(owned).await {
                    // A program that has its files continues it.
                    Err(Error::UnknownPrevious { .. } | Error::OtherProgram { .. }) => Ok(false),
                    ended => ended.map(|()| true),
                };
            }
            Some(job)
                if job.state.is_unfinished()
                    && job.definition_hash == self.definition.projection.definition_hash => {}
            _ => return Ok(false),
        }
        owned.session.require_tables(&self.definition.projection, &owned.live.ledger).await?;
        owned.run().await?;
        Ok(true)
    }

    /// Puts the previous tables back in service, with the definition that was in service with them.
    pub(crate) async fn roll_back(&self) -> Result<(), Error> {
        let mut owned = self.own_or_fail().await?;
        let (projection, old) = (self.name().to_owned(), &self.databases.old);
        match &owned.job {
            Some(job) if job.state == JobState::RollingBack => {}
            Some(job) if job.state.is_building() => return Err(Error::UnderWay { projection }),
            _ => {
                let ledger = &owned.live.ledger;
                if owned.session.count_tables(old, &[ledger.streams_table()]).await? == 0 {
                    return Err(Error::NoPreviousTables { projection });
                }
                let hash = owned.session.previous_definition(ledger, old).await?;
                let hash = hash.ok_or(Error::UnknownPrevious { projection: projection.clone() })?;
                let previous = self.with_definition(&mut owned.session, &hash).await?;
                let tables = previous.tables(ledger);
                let needed = tables_of_every_release(&tables, ledger);
                if owned.session.count_tables(old, &needed).await? < needed.len() {
                    return Err(Error::NoPreviousTables { projection });
                }
                owned.require_swappable().await?;
                owned.session.drop_tables(&self.databases.new, &owned.tables).await?;
                let options = RebuildOptions::default();
                owned.session.plan_job(&owned.live.ledger, &hash, options).await?;
                owned.enter(JobState::RollingBack).await?;
                owned.job = owned.session.job(&owned.live.ledger).await?;
            }
        }
        self.continue_rollback(owned).await
    }

    /// Runs a rollback with the definition of its tables, which need not be that of this program.
    async fn continue_rollback(&self, owned: Box<Owned<'_>>) -> Result<(), Error> {
        let Owned { mut session, job, .. } = *owned;
        let hash = job.as_ref().map(|job| job.definition_hash.clone()).unwrap_or_default();
        let previous = self.with_definition(&mut session, &hash).await?;
        let live = previous.model();
        let tables = previous.tables(&live.ledger);
        Owned { rebuilder: &previous, session, live, tables, job }.run().await
    }

    /// The same work with the definition that has this hash: that of this program, or the stored one.
    async fn with_definition(&self, session: &mut Session, hash: &str) -> Result<Self, Error> {
        let projection = self.name().to_owned();
        let definition = if self.definition.projection.definition_hash == hash {
            self.definition.clone()
        } else {
            let stored = session.stored_definition(&self.model().ledger, hash).await?;
            match stored {
                None => return Err(Error::UnknownPrevious { projection }),
                Some(stored) if stored.in_rust => return Err(Error::OtherProgram { projection }),
                Some(stored) => self.definition.with_files(&stored).map_err(|faults| {
                    let fault = faults.first().map(ToString::to_string).unwrap_or_default();
                    Error::RefusedFiles { projection, fault }
                })?,
            }
        };
        Ok(Self {
            definition,
            mysql: self.mysql.clone(),
            store: self.store.clone(),
            databases: self.databases.clone(),
            report: self.report.clone(),
            host: self.host.clone(),
        })
    }

    /// Cancels a rebuild, whichever process runs it, and drops its tables.
    pub(crate) async fn cancel(&self) -> Result<(), Error> {
        let mut session = Session::connect(&self.mysql).await?;
        let ledger = self.model().ledger;
        let nothing = || Error::NothingToCancel { projection: self.name().to_owned() };
        let is_cutting_over =
            session.job(&ledger).await?.is_some_and(|job| job.state == JobState::CuttingOver);
        if !is_cutting_over && !session.cancel_job(&ledger).await? {
            return Err(nothing());
        }
        session.close().await;
        let mut owned = self.wait_to_own().await?;
        if is_cutting_over {
            let state = owned.job.as_ref().map(|job| job.state);
            if state != Some(JobState::CuttingOver) || owned.is_swapped(&self.databases.new).await?
            {
                return Err(nothing());
            }
            owned.enter(JobState::Cancelled).await?;
        }
        owned.session.note_swapping(&owned.live.ledger, false).await?;
        owned.session.drop_tables(&self.databases.new, &owned.tables).await?;
        owned.session.close().await;
        Ok(())
    }

    /// Drops the tables that a rebuild or a rollback has taken out of service.
    pub(crate) async fn drop_previous(&self) -> Result<(), Error> {
        let mut owned = self.own_or_fail().await?;
        let Some(job) = owned.job.as_ref().filter(|job| !job.state.is_unfinished()) else {
            return Err(Error::NoPreviousTables { projection: self.name().to_owned() });
        };
        let rolled_back = job.state == JobState::RolledBack;
        owned.session.drop_tables(&self.databases.old, &owned.tables).await?;
        if rolled_back {
            owned.session.drop_tables(&self.databases.new, &owned.tables).await?;
        }
        if matches!(job.state, JobState::Done | JobState::RolledBack) {
            owned.enter(JobState::OldDropped).await?;
        }
        owned.session.close().await;
        Ok(())
    }

    /// Tries to take the lock of a rebuild.
    async fn try_own(&self) -> Result<Ownership<'_>, Error> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        let own = session.try_own(&live.ledger, Lock::Rebuild).await?;
        if own {
            // Otherwise a delayed swap of the previous owner could still happen.
            session.void_tickets(&live.ledger, &self.databases).await?;
        }
        let job = session.job(&live.ledger).await?;
        if !own {
            session.close().await;
            return Ok(Ownership::Theirs(job));
        }
        let tables = self.tables(&live.ledger);
        Ok(Ownership::Ours(Box::new(Owned { rebuilder: self, session, live, tables, job })))
    }

    fn locked(&self) -> Error {
        Error::Locked { projection: self.name().to_owned() }
    }

    async fn own_or_fail(&self) -> Result<Box<Owned<'_>>, Error> {
        match self.try_own().await? {
            Ownership::Ours(owned) => Ok(owned),
            Ownership::Theirs(_) => Err(self.locked()),
        }
    }

    /// Takes the lock after the process that runs the rebuild has noticed that it was cancelled.
    async fn wait_to_own(&self) -> Result<Box<Owned<'_>>, Error> {
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            if let Ownership::Ours(owned) = self.try_own().await? {
                return Ok(owned);
            }
            sleep(WATCH).await;
            waited += WATCH;
        }
        self.own_or_fail().await
    }

    /// Keeps rebuilds and other comparisons from starting until the session ends.
    async fn require_exclusive(&self, session: &mut Session, ledger: &Ledger) -> Result<(), Error> {
        if session.try_own(ledger, Lock::Rebuild).await? { Ok(()) } else { Err(self.locked()) }
    }

    /// Creates the tables of the projection in another database.
    async fn target(&self, session: &mut Session, database: &str) -> Result<Target, Error> {
        session.make_database(database).await?;
        let options = self.mysql.with_database(database);
        let mut shadow = Session::connect(&options).await?;
        let model = self.model();
        shadow.migrate().await?;
        shadow.migrate_projection(&model.projection, &model.ledger).await?;
        shadow.set_definition(&model.projection).await?;
        shadow.copy_skips(&model.ledger, &self.databases.live).await?;
        Ok(Target::of(Arc::new(model), shadow, &options).await?)
    }

    /// Replays the history until few positions are left.
    async fn catch_up(&self, target: &mut Target, pace: &mut RebuildPace<'_>) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            if self.replay_decided(target, pace).await? < NEAR {
                break;
            }
        }
        Ok(())
    }

    /// Replays the history up to the decided end of the event store. Returns the number of positions.
    async fn replay_decided(
        &self,
        target: &mut Target,
        pace: &mut RebuildPace<'_>,
    ) -> Result<i64, Error> {
        let mut history = History::new(self.store.clone());
        let until = loop {
            match history.decided(FENCE_PATIENCE).await? {
                Decided::UpTo(until) => break until,
                Decided::HeldUp(by) => {
                    let at = target.position().await?;
                    pace.held_up(&by.to_string(), at).await?;
                }
            }
        };
        let after = target.position().await?;
        if after >= until {
            return Ok(0);
        }
        let (session, model) = target.session();
        // Live tables have a checkpoint, and consumers update them meanwhile: no replay is recorded for them.
        if session.checkpoint(&model.ledger).await?.is_none() {
            session.begin_replay(&model.ledger, until).await?;
            failpoint!("replay::begun");
        }
        replay(&self.store, target, (after, until), pace).await?;
        Ok(until.get() - after.get())
    }
}
