//! Building a read model beside the live one, and putting it in its place.
//!
//! The new tables lie in another database under the same names, so that everything that applies events
//! works there as it is. At the end all tables of the projection, its bookkeeping included, are swapped
//! at once, while no batch is under way.
//!
//! A rebuild is a job: its state is a row in MySQL, and the session that holds its lock goes on with it:
//! that of the command that began it, or of any projector with the same files.
//!
//! **Invariant:** whatever is interrupted, either the old tables are in service or the new ones, all of
//! them; and what the tables in service lack is found between their own checkpoint and the event store.

mod cut_over;
mod dry_run;
mod error;
mod in_place;
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

pub(crate) use self::error::Error;
pub(crate) use self::in_place::Folded;
pub(crate) use self::maintenance::maintain;
use self::progress::RebuildPace;
pub(crate) use self::progress::{Report, text};
use crate::failpoints::failpoint;
use crate::history::{Decided, FENCE_PATIENCE, History, Target, replay};

/// When so few positions are left, the tables are near enough.
const NEAR: i64 = 2_000;
/// How often to come nearer before that is enough.
const ROUNDS: u32 = 10;
/// How often to check on a rebuild that another process runs.
const WATCH: Duration = Duration::from_secs(1);
/// How long that process may take to record its progress, or to notice that it was cancelled.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause before a server that failed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// What changes the tables of a projection as a whole.
pub(crate) struct Rebuilder {
    pub(crate) definition: Definition,
    pub(crate) mysql: read_model::Options,
    pub(crate) store: event_store::Options,
    pub(crate) databases: Databases,
    pub(crate) report: Report,
    /// For the state of the rebuild.
    pub(crate) host: String,
}

/// A rebuild whose lock we have: nobody else changes the tables until the session ends.
struct Owned<'r> {
    rebuilder: &'r Rebuilder,
    session: Session,
    live: ReadModel,
    tables: Vec<String>,
    job: Option<Job>,
}

/// What became of a try to go on with a rebuild.
enum Turn {
    Ended,
    /// Another process runs it.
    Elsewhere(Option<Job>),
}

/// What became of a try to take the lock of a rebuild.
enum Taken<'r> {
    Ours(Box<Owned<'r>>),
    /// Another process has it.
    Elsewhere(Option<Job>),
}

impl Rebuilder {
    /// A read model whose tables were not read yet.
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

    /// Rebuilds the read model and puts it in service. Goes on with an interrupted rebuild, and waits while
    /// another process runs it.
    pub(crate) async fn rebuild(&self, options: RebuildOptions) -> Result<(), Error> {
        let mut begun = false;
        let mut watched = Duration::ZERO;
        let mut backoff = Backoff::new(Duration::from_millis(100), RETRY_MAX);
        loop {
            match self.turn(options, &mut begun).await {
                Ok(Turn::Ended) => return Ok(()),
                Ok(Turn::Elsewhere(job)) => {
                    let job = job.filter(|job| job.state.is_building());
                    match &job {
                        Some(job) => self.report.progress(&job.progress),
                        None => watched += WATCH,
                    }
                    begun |= job.is_some();
                    if watched > PATIENCE {
                        return Err(self.another());
                    }
                    sleep(WATCH).await;
                }
                Err(error) if begun && error.is_transient() => {
                    self.report.say(&format!("{}; trying again", chain(&error)));
                    sleep(backoff.failed()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn turn(&self, options: RebuildOptions, begun: &mut bool) -> Result<Turn, Error> {
        let mut owned = match self.own().await? {
            Taken::Ours(owned) => owned,
            Taken::Elsewhere(job) => return Ok(Turn::Elsewhere(job)),
        };
        owned.session.require_tables(&self.definition.projection, &owned.live.ledger).await?;
        let hash = &self.definition.projection.definition_hash;
        match &owned.job {
            // Another process has ended it, or somebody has.
            Some(job) if *begun && !job.state.is_unfinished() => return owned.outcome(),
            Some(job) if job.state == JobState::RollingBack => {}
            Some(job)
                if (job.state.is_building() || job.state == JobState::Failed)
                    && job.definition_hash == *hash =>
            {
                owned.session.adopt_job(&owned.live.ledger, options).await?;
            }
            _ => owned.session.plan_job(&owned.live.ledger, hash, options).await?,
        }
        failpoint!("rebuild::planned");
        *begun = true;
        owned.go_on().await?;
        Ok(Turn::Ended)
    }

    /// Goes on with an interrupted rebuild, if there is one and nobody runs it.
    pub(crate) async fn resume(&self) -> Result<bool, Error> {
        let Taken::Ours(mut owned) = self.own().await? else { return Ok(false) };
        let is_ours = |job: &Job| {
            job.state.is_unfinished()
                && job.definition_hash == self.definition.projection.definition_hash
        };
        if !owned.job.as_ref().is_some_and(is_ours) {
            return Ok(false);
        }
        owned.go_on().await?;
        Ok(true)
    }

    /// Puts the previous tables back in service.
    pub(crate) async fn roll_back(&self) -> Result<(), Error> {
        let mut owned = self.own_or_refuse().await?;
        let old = &self.databases.old;
        match &owned.job {
            Some(job) if job.state == JobState::RollingBack => {}
            Some(job) if job.state.is_building() => {
                return Err(Error::UnderWay { projection: self.name().to_owned() });
            }
            _ => {
                if owned.session.count_tables(old, &owned.tables).await? < owned.tables.len() {
                    return Err(Error::NoPreviousTables { projection: self.name().to_owned() });
                }
                owned.session.drop_tables(&self.databases.new, &owned.tables).await?;
                let hash = &self.definition.projection.definition_hash;
                owned.session.plan_job(&owned.live.ledger, hash, RebuildOptions::default()).await?;
                owned.enter(JobState::RollingBack).await?;
            }
        }
        owned.go_on().await
    }

    /// Gives up a rebuild, wherever it runs.
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
        let mut owned = self.own_in_time().await?;
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
        let mut owned = self.own_or_refuse().await?;
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

    /// Takes the lock of a rebuild, unless another process has it; then gives its state.
    async fn own(&self) -> Result<Taken<'_>, Error> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        let own = session.try_own(&live.ledger, Lock::Rebuild).await?;
        if own {
            // A swap of the previous owner must not come later.
            session.void_tickets(&live.ledger, &self.databases).await?;
        }
        let job = session.job(&live.ledger).await?;
        if !own {
            session.close().await;
            return Ok(Taken::Elsewhere(job));
        }
        let tables = self.tables(&live.ledger);
        Ok(Taken::Ours(Box::new(Owned { rebuilder: self, session, live, tables, job })))
    }

    fn another(&self) -> Error {
        Error::Another { projection: self.name().to_owned() }
    }

    async fn own_or_refuse(&self) -> Result<Box<Owned<'_>>, Error> {
        match self.own().await? {
            Taken::Ours(owned) => Ok(owned),
            Taken::Elsewhere(_) => Err(self.another()),
        }
    }

    /// Waits until the process that ran it has noticed that it was cancelled.
    async fn own_in_time(&self) -> Result<Box<Owned<'_>>, Error> {
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            if let Taken::Ours(owned) = self.own().await? {
                return Ok(owned);
            }
            sleep(WATCH).await;
            waited += WATCH;
        }
        self.own_or_refuse().await
    }

    /// Keeps rebuilds and other comparisons away, until the session ends.
    async fn alone(&self, session: &mut Session, ledger: &Ledger) -> Result<(), Error> {
        if session.try_own(ledger, Lock::Rebuild).await? { Ok(()) } else { Err(self.another()) }
    }

    /// The projection in another database, with its tables.
    async fn target(&self, session: &mut Session, database: &str) -> Result<Target, Error> {
        session.make_database(database).await?;
        let options = self.mysql.with_database(database);
        let mut shadow = Session::connect(&options).await?;
        let model = self.model();
        shadow.migrate().await?;
        shadow.migrate_projection(&model.projection, &model.ledger).await?;
        Ok(Target::of(Arc::new(model), shadow, &options).await?)
    }

    /// Applies the history until there is hardly anything left.
    async fn catch_up(&self, target: &mut Target, pace: &mut RebuildPace<'_>) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            if self.come_nearer(target, pace).await? < NEAR {
                break;
            }
        }
        Ok(())
    }

    /// Applies the history up to where its order is decided; gives how many positions that were.
    async fn come_nearer(
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
        // Tables in service have a checkpoint, and go on being filled from the queue meanwhile.
        if session.checkpoint(&model.ledger).await?.is_none() {
            session.begin_replay(&model.ledger, until).await?;
            failpoint!("replay::begun");
        }
        replay(&self.store, target, (after, until), pace).await?;
        Ok(until.get() - after.get())
    }
}

impl Owned<'_> {
    /// Does what is left to do, and records how that ended.
    async fn go_on(&mut self) -> Result<(), Error> {
        self.job = self.session.job(&self.live.ledger).await?;
        let result = match self.job.as_ref().map(|job| job.state) {
            Some(JobState::RollingBack) => self.roll_back().await,
            Some(state) => self.build(state).await,
            None => return Ok(()),
        };
        match result {
            Err(error) if !error.is_transient() => {
                if !matches!(error, Error::Cancelled { .. }) {
                    let (host, ledger) = (&self.rebuilder.host, &self.live.ledger);
                    let reason = chain(&error);
                    self.session.note_state(ledger, JobState::Failed, host, Some(&reason)).await?;
                    self.session.note_swapping(ledger, false).await?;
                }
                Err(error)
            }
            other => other,
        }
    }

    /// Records the state of the rebuild.
    async fn enter(&mut self, state: JobState) -> Result<(), Error> {
        let host = &self.rebuilder.host;
        if self.session.note_state(&self.live.ledger, state, host, None).await? {
            Ok(())
        } else {
            Err(Error::Cancelled { projection: self.live.name().to_owned() })
        }
    }

    /// How it ended in another process.
    fn outcome(&self) -> Result<Turn, Error> {
        let projection = self.live.name().to_owned();
        match &self.job {
            Some(Job { state: JobState::Failed, reason, .. }) => {
                let reason = reason.clone().unwrap_or_default();
                Err(Error::Failed { projection, reason })
            }
            Some(Job { state: JobState::Cancelled, .. }) => Err(Error::Cancelled { projection }),
            _ => Ok(Turn::Ended),
        }
    }

    fn pace(&mut self, options: RebuildOptions) -> RebuildPace<'_> {
        let Rebuilder { report, store, .. } = self.rebuilder;
        RebuildPace::of_rebuild(report, store, &mut self.session, options, &self.live)
    }

    async fn build(&mut self, state: JobState) -> Result<(), Error> {
        let rebuilder = self.rebuilder;
        let (new, old) = (&rebuilder.databases.new, &rebuilder.databases.old);
        if state == JobState::CuttingOver && self.is_swapped(new).await? {
            self.record_swap().await?;
        } else {
            if state == JobState::Planned {
                self.session.drop_tables(new, &self.tables).await?;
                failpoint!("rebuild::leftovers-dropped");
            }
            self.enter(JobState::Building).await?;
            failpoint!("rebuild::building");
            let mut target = rebuilder.target(&mut self.session, new).await?;
            failpoint!("rebuild::tables-made");
            let options = self.job.as_ref().map(|job| job.options).unwrap_or_default();
            let mut pace = self.pace(options);
            rebuilder.come_nearer(&mut target, &mut pace).await?;
            self.enter(JobState::CatchingUp).await?;
            failpoint!("rebuild::catching-up");
            let mut pace = self.pace(options);
            rebuilder.catch_up(&mut target, &mut pace).await?;
            let (session, model) = target.session();
            let (parked, _) = session.count_parked(&model.ledger).await?;
            if parked > 0 && !options.allow_parked {
                let first = session.parked(&model.ledger).await?.into_iter().next();
                let reason = first.map_or_else(String::new, |first| first.reason);
                return Err(Error::Parked { parked, reason });
            }
            self.cut_over(&mut target, (JobState::CuttingOver, new, old)).await?;
            target.close().await;
        }
        self.catch_up_in_service().await?;
        self.enter(JobState::Done).await?;
        failpoint!("rebuild::done");
        Ok(())
    }

    async fn roll_back(&mut self) -> Result<(), Error> {
        let rebuilder = self.rebuilder;
        let (new, old) = (&rebuilder.databases.new, &rebuilder.databases.old);
        if self.is_swapped(old).await? {
            self.record_swap().await?;
        } else {
            let mut target = rebuilder.target(&mut self.session, old).await?;
            let mut pace = self.pace(RebuildOptions::default());
            rebuilder.catch_up(&mut target, &mut pace).await?;
            self.cut_over(&mut target, (JobState::RollingBack, old, new)).await?;
            target.close().await;
        }
        self.catch_up_in_service().await?;
        self.enter(JobState::RolledBack).await
    }
}
