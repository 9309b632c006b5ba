//! The job of a rebuild or a rollback: its steps, from the state in which it was interrupted.

use daemon::chain;
use read_model::{Job, JobState, ReadModel, RebuildOptions, Session};

use super::progress::RebuildPace;
use super::{Error, Rebuilder};
use crate::failpoints::failpoint;

/// A job whose lock this process holds. Nobody else changes the tables until the session ends.
pub(super) struct Owned<'r> {
    pub(super) rebuilder: &'r Rebuilder,
    pub(super) session: Session,
    pub(super) live: ReadModel,
    pub(super) tables: Vec<String>,
    pub(super) job: Option<Job>,
}

/// The result of an attempt to run a rebuild.
pub(super) enum Attempt {
    Ended,
    /// Another process runs it.
    Elsewhere(Option<Job>),
}

impl Owned<'_> {
    /// Runs the steps that are left. Records a failure in the job.
    pub(super) async fn run(&mut self) -> Result<(), Error> {
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
    pub(super) async fn enter(&mut self, state: JobState) -> Result<(), Error> {
        let host = &self.rebuilder.host;
        if self.session.note_state(&self.live.ledger, state, host, None).await? {
            Ok(())
        } else {
            Err(Error::Cancelled { projection: self.live.name().to_owned() })
        }
    }

    /// The result of a job that another process has ended.
    pub(super) fn outcome(&self) -> Result<Attempt, Error> {
        let projection = self.live.name().to_owned();
        match &self.job {
            Some(Job { state: JobState::Failed, reason, .. }) => {
                let reason = reason.clone().unwrap_or_default();
                Err(Error::Failed { projection, reason })
            }
            Some(Job { state: JobState::Cancelled, .. }) => Err(Error::Cancelled { projection }),
            _ => Ok(Attempt::Ended),
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
            self.record_swap(old).await?;
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
            rebuilder.replay_decided(&mut target, &mut pace).await?;
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
            self.record_swap(new).await?;
        } else {
            let mut target = rebuilder.target(&mut self.session, old).await?;
            let mut pace = self.pace(RebuildOptions::default());
            rebuilder.catch_up(&mut target, &mut pace).await?;
            rebuilder.release_skipped(&mut target).await?;
            self.cut_over(&mut target, (JobState::RollingBack, old, new)).await?;
            target.close().await;
        }
        self.catch_up_in_service().await?;
        self.enter(JobState::RolledBack).await
    }
}
