//! Building a read model anew, beside the live one, and putting it in its place.
//!
//! The new tables lie in another database under the same names, so that everything that applies events
//! works there as it is. At the end all tables of the projection, its bookkeeping included, are swapped
//! at once, while no batch is under way.
//!
//! A rebuild is a job: its state is a row in MySQL, and whoever holds its lock goes on with it, the
//! command that began it or any projector with the same files.
//!
//! **Invariant:** whatever is interrupted, either the old tables are in service or the new ones, all of
//! them; and what the tables in service lack is found between their own checkpoint and the event store.

mod crash;
mod cut_over;
mod replay;
mod report;
mod tend;

use std::time::Duration;

use daemon::backoff::Backoff;
use daemon::chain;
use tokio::time::sleep;

pub(crate) use self::replay::{Course, EVENTS_AT_ONCE, STREAMS_AT_ONCE, Target, missing};
pub(crate) use self::report::{Report, text};
pub(crate) use self::tend::tend;
use crate::apply::ReadModel;
use crate::mysql::{self, Databases, Job, JobState, Session, Wishes, all_tables};
use crate::projection::Projection;
use crate::trouble::Trouble;

/// How often to look at a rebuild that another process is at.
const WATCH: Duration = Duration::from_secs(1);
/// How long the one that is at it may take to say so, or to notice that it was cancelled.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause before a server that let us down is tried again.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// What works on the tables of a projection as a whole.
pub(crate) struct Rebuilder {
    pub(crate) projection: Projection,
    pub(crate) mysql: mysql::Options,
    pub(crate) store: event_store::Options,
    pub(crate) databases: Databases,
    pub(crate) report: Report,
    /// For the state of the rebuild.
    pub(crate) host: String,
}

/// A rebuild that is ours: nobody else works on it until the session ends.
struct Owned<'r> {
    rebuilder: &'r Rebuilder,
    session: Session,
    live: ReadModel,
    tables: Vec<String>,
    job: Option<Job>,
}

/// What became of a look at a rebuild.
enum Turn {
    Ended,
    /// Another process is at it.
    Elsewhere(Option<Job>),
}

impl Rebuilder {
    pub(crate) fn model(&self) -> ReadModel {
        ReadModel::new(self.projection.clone())
    }

    /// Builds the read model anew and puts it in service; goes on with what was interrupted, and waits
    /// where another process is at it.
    pub(crate) async fn rebuild(&self, wishes: Wishes) -> Result<(), Trouble> {
        let mut begun = false;
        let mut watched = Duration::ZERO;
        let mut backoff = Backoff::new(Duration::from_millis(100), RETRY_MAX);
        loop {
            match self.turn(wishes, &mut begun).await {
                Ok(Turn::Ended) => return Ok(()),
                Ok(Turn::Elsewhere(job)) => {
                    let job = job.filter(|job| job.state.is_building());
                    match &job {
                        Some(job) => self.report.progress(&job.progress),
                        None => watched += WATCH,
                    }
                    begun |= job.is_some();
                    if watched > PATIENCE {
                        return Err(Trouble::AnotherRebuild {
                            projection: self.projection.name.clone(),
                        });
                    }
                    sleep(WATCH).await;
                }
                Err(trouble) if begun && trouble.is_passing() => {
                    self.report.say(&format!("{}; trying again", chain(&trouble)));
                    sleep(backoff.failed()).await;
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    async fn turn(&self, wishes: Wishes, begun: &mut bool) -> Result<Turn, Trouble> {
        let mut owned = match self.own().await? {
            Ok(owned) => owned,
            Err(job) => return Ok(Turn::Elsewhere(job)),
        };
        owned.session.require_tables(&self.projection, &owned.live.ledger).await?;
        let hash = &self.projection.definition_hash;
        match &owned.job {
            // Another process has ended it, or somebody has.
            Some(job) if *begun && !job.state.is_unfinished() => return owned.outcome(),
            Some(job) if job.state == JobState::RollingBack => {}
            Some(job)
                if (job.state.is_building() || job.state == JobState::Failed)
                    && job.definition_hash == *hash =>
            {
                owned.session.adopt_job(&owned.live.ledger, wishes).await?;
            }
            _ => owned.session.plan_job(&owned.live.ledger, hash, wishes).await?,
        }
        crash::point("planned");
        *begun = true;
        owned.go_on().await?;
        Ok(Turn::Ended)
    }

    /// Goes on with what was interrupted, if there is something and nobody is at it.
    pub(crate) async fn resume(&self) -> Result<bool, Trouble> {
        let Ok(mut owned) = self.own().await? else { return Ok(false) };
        let is_ours = |job: &Job| {
            job.state.is_unfinished() && job.definition_hash == self.projection.definition_hash
        };
        if !owned.job.as_ref().is_some_and(is_ours) {
            return Ok(false);
        }
        owned.go_on().await?;
        Ok(true)
    }

    /// Puts the tables of before back in service.
    pub(crate) async fn roll_back(&self) -> Result<(), Trouble> {
        let mut owned = self.own_or_refuse().await?;
        let name = &self.projection.name;
        let old = &self.databases.old;
        match &owned.job {
            Some(job) if job.state == JobState::RollingBack => {}
            Some(job) if job.state.is_building() => {
                return Err(Trouble::RebuildUnderWay { projection: name.clone() });
            }
            _ => {
                if owned.session.count_tables(old, &owned.tables).await? < owned.tables.len() {
                    return Err(Trouble::NoGeneration { projection: name.clone() });
                }
                owned.session.drop_tables(&self.databases.new, &owned.tables).await?;
                let hash = &self.projection.definition_hash;
                owned.session.plan_job(&owned.live.ledger, hash, Wishes::default()).await?;
                owned.enter(JobState::RollingBack).await?;
            }
        }
        owned.go_on().await
    }

    /// Gives up a rebuild, wherever it is at work.
    pub(crate) async fn cancel(&self) -> Result<(), Trouble> {
        let mut session = Session::connect(&self.mysql).await?;
        let ledger = self.model().ledger;
        let nothing = || Trouble::NothingToCancel { projection: self.projection.name.clone() };
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
    pub(crate) async fn drop_old(&self) -> Result<(), Trouble> {
        let mut owned = self.own_or_refuse().await?;
        let Some(job) = owned.job.as_ref().filter(|job| !job.state.is_unfinished()) else {
            return Err(Trouble::NoGeneration { projection: self.projection.name.clone() });
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

    /// Makes a rebuild ours, unless another process is at it; then gives what it says.
    async fn own(&self) -> Result<Result<Owned<'_>, Option<Job>>, Trouble> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        let own = session.try_own(&format!("{}.rebuild", live.name())).await?;
        if own {
            // A swap of whoever had it before must not come later.
            session.void_tickets(&live.ledger, &self.databases).await?;
        }
        let job = session.job(&live.ledger).await?;
        if !own {
            session.close().await;
            return Ok(Err(job));
        }
        let tables = all_tables(&self.projection, &live.ledger);
        Ok(Ok(Owned { rebuilder: self, session, live, tables, job }))
    }

    async fn own_or_refuse(&self) -> Result<Owned<'_>, Trouble> {
        self.own()
            .await?
            .map_err(|_job| Trouble::AnotherRebuild { projection: self.projection.name.clone() })
    }

    /// Waits until who was at it has noticed that it was cancelled.
    async fn own_in_time(&self) -> Result<Owned<'_>, Trouble> {
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            if let Ok(owned) = self.own().await? {
                return Ok(owned);
            }
            sleep(WATCH).await;
            waited += WATCH;
        }
        self.own_or_refuse().await
    }

    /// Keeps rebuilds and other comparisons away, until the session ends.
    pub(crate) async fn alone(&self, session: &mut Session) -> Result<(), Trouble> {
        let name = &self.projection.name;
        if session.try_own(&format!("{name}.rebuild")).await? {
            Ok(())
        } else {
            Err(Trouble::AnotherRebuild { projection: name.clone() })
        }
    }

    /// The projection in another database, with its tables.
    pub(crate) async fn target(
        &self,
        session: &mut Session,
        database: &str,
    ) -> Result<Target, Trouble> {
        session.make_database(database).await?;
        let options = self.mysql.with_database(database);
        let mut shadow = Session::connect(&options).await?;
        let model = self.model();
        shadow.migrate().await?;
        shadow.migrate_projection(&self.projection, &model.ledger).await?;
        Target::of(model, shadow, &options).await
    }
}

impl Owned<'_> {
    /// Does what is left to do, and notes how that ended.
    async fn go_on(&mut self) -> Result<(), Trouble> {
        self.job = self.session.job(&self.live.ledger).await?;
        let result = match self.job.as_ref().map(|job| job.state) {
            Some(JobState::RollingBack) => self.roll_back().await,
            Some(state) => self.build(state).await,
            None => return Ok(()),
        };
        match result {
            Err(trouble) if !trouble.is_passing() => {
                if !matches!(trouble, Trouble::Cancelled { .. }) {
                    let (host, ledger) = (&self.rebuilder.host, &self.live.ledger);
                    let reason = chain(&trouble);
                    self.session.note_state(ledger, JobState::Failed, host, Some(&reason)).await?;
                    self.session.note_swapping(ledger, false).await?;
                }
                Err(trouble)
            }
            other => other,
        }
    }

    /// Notes how far the rebuild is.
    async fn enter(&mut self, state: JobState) -> Result<(), Trouble> {
        let host = &self.rebuilder.host;
        if self.session.note_state(&self.live.ledger, state, host, None).await? {
            Ok(())
        } else {
            Err(Trouble::Cancelled { projection: self.live.name().to_owned() })
        }
    }

    /// How it ended in another process.
    fn outcome(&self) -> Result<Turn, Trouble> {
        let projection = self.live.name().to_owned();
        match &self.job {
            Some(Job { state: JobState::Failed, reason, .. }) => {
                let reason = reason.clone().unwrap_or_default();
                Err(Trouble::RebuildFailed { projection, reason })
            }
            Some(Job { state: JobState::Cancelled, .. }) => Err(Trouble::Cancelled { projection }),
            _ => Ok(Turn::Ended),
        }
    }

    async fn build(&mut self, state: JobState) -> Result<(), Trouble> {
        let rebuilder = self.rebuilder;
        let (new, old) = (&rebuilder.databases.new, &rebuilder.databases.old);
        if state == JobState::CuttingOver && self.is_swapped(new).await? {
            self.note_swap().await?;
        } else {
            if state == JobState::Planned {
                self.session.drop_tables(new, &self.tables).await?;
                crash::point("old attempts are gone");
            }
            self.enter(JobState::Building).await?;
            crash::point("building");
            let mut target = rebuilder.target(&mut self.session, new).await?;
            crash::point("the new tables are made");
            let wishes = self.job.as_ref().map(|job| job.wishes).unwrap_or_default();
            let mut course =
                Course::of_job(&rebuilder.report, wishes, &mut self.session, &self.live);
            rebuilder.come_nearer(&mut target, &mut course).await?;
            self.enter(JobState::CatchingUp).await?;
            crash::point("catching up");
            let mut course =
                Course::of_job(&rebuilder.report, wishes, &mut self.session, &self.live);
            rebuilder.catch_up(&mut target, &mut course).await?;
            let (session, model) = target.session();
            let (parked, _) = session.count_parked(&model.ledger).await?;
            if parked > 0 && !wishes.allow_parked {
                let first = session.parked(&model.ledger).await?.into_iter().next();
                let reason = first.map_or_else(String::new, |first| first.reason);
                return Err(Trouble::ParkedInRebuild { parked, reason });
            }
            self.cut_over(&mut target, (JobState::CuttingOver, new, old)).await?;
            target.close().await;
        }
        self.level().await?;
        self.enter(JobState::Done).await?;
        crash::point("done");
        Ok(())
    }

    async fn roll_back(&mut self) -> Result<(), Trouble> {
        let rebuilder = self.rebuilder;
        let (new, old) = (&rebuilder.databases.new, &rebuilder.databases.old);
        if self.is_swapped(old).await? {
            self.note_swap().await?;
        } else {
            let mut target = rebuilder.target(&mut self.session, old).await?;
            let mut course =
                Course::of_job(&rebuilder.report, Wishes::default(), &mut self.session, &self.live);
            rebuilder.catch_up(&mut target, &mut course).await?;
            self.cut_over(&mut target, (JobState::RollingBack, old, new)).await?;
            target.close().await;
        }
        self.level().await?;
        self.enter(JobState::RolledBack).await
    }
}
