//! The cut-over puts new tables in service.
//!
//! It closes the gate, the row lock that every batch takes first. Then it applies the events that arrived
//! meanwhile, and swaps all tables with one statement. After the swap, it replays all events between the
//! checkpoint of the new tables and a new fence. So correctness does not depend on the gate; versions make
//! events that were applied already harmless.

use std::sync::Arc;
use std::time::{Duration, Instant};

use read_model::{JobState, Ledger, Options, ReadModel, Session, Swap};
use tokio::time::sleep;

use super::progress::RebuildPace;
use super::{Error, Owned, Rebuilder};
use crate::error::Error as WorkError;
use crate::failpoints::failpoint;
use crate::heal::{Decision, ParkedError, retry_or_skip};
use crate::history::Target;
use crate::survey::list;

/// The longest pause between two attempts to swap the tables.
const SWAP_PAUSE: Duration = Duration::from_secs(2);

impl Owned<'_> {
    /// Moves the tables of `target` from the database `from` into service, and those in service to the database
    /// `away`.
    pub(super) async fn cut_over(
        &mut self,
        target: &mut Target,
        (state, from, away): (JobState, &str, &str),
    ) -> Result<(), Error> {
        let rebuilder = self.rebuilder;
        let mut helper = Session::connect(&rebuilder.mysql).await?;
        let mut store = event_store::Session::connect(&rebuilder.store).await?;
        self.enter(state).await?;
        failpoint!("rebuild::cutting-over");
        // The swap needs free table names in `away`. Only the session that owns the job may drop tables.
        self.session.make_database(away).await?;
        self.session.drop_tables(away, &self.tables).await?;
        failpoint!("rebuild::place-freed");
        self.session.note_swapping(&self.live.ledger, true).await?;
        failpoint!("rebuild::swap-announced");
        let mut pause = Duration::from_millis(100);
        loop {
            catch_up_with_live(target, &mut store, &mut helper, &self.live).await?;
            let ticket = self.session.issue_ticket(&self.live.ledger, from).await?;
            failpoint!("rebuild::before-gate");
            let mut batch = self.session.close_gate(&self.live.ledger).await?;
            // Until now, batches ran.
            let closed = Instant::now();
            failpoint!("rebuild::gate-closed");
            if *target.model.skips() != batch.skips().await? {
                batch.rollback().await?;
                let projection = self.live.name().to_owned();
                return Err(Error::SkippedMeanwhile { projection });
            }
            catch_up_with_live(target, &mut store, &mut helper, &self.live).await?;
            failpoint!("rebuild::caught-up-behind-gate");
            let live = &rebuilder.databases.live;
            let ways = [from, live, away];
            let swapped = match helper.swap(&rebuilder.mysql, &self.tables, &ticket, ways).await? {
                Swap::Done => true,
                Swap::Held => {
                    helper.void_tickets(&self.live.ledger, &rebuilder.databases).await?;
                    let tables = tables_of_every_release(&self.tables, &self.live.ledger);
                    is_swapped(&mut helper, live, &tables, from).await?
                }
            };
            if swapped {
                failpoint!("rebuild::swapped");
                let previous = helper.epoch_in(&self.live.ledger, away).await?;
                batch.next_generation(&self.live.projection, previous).await?;
                failpoint!("rebuild::swap-recorded");
                batch.commit().await?;
                failpoint!("rebuild::gate-open");
                let gap = closed.elapsed();
                rebuilder
                    .report
                    .say(&format!("the tables are swapped; no batch was applied for {gap:?}"));
                break;
            }
            batch.rollback().await?;
            rebuilder.report.say(&format!(
                "a reader holds a table, so the tables were not swapped: {}; the next attempt is in {pause:?}",
                readers(&mut helper, &rebuilder.mysql, &self.tables).await?
            ));
            sleep(pause).await;
            pause = SWAP_PAUSE.min(pause * 2);
        }
        helper.void_tickets(&self.live.ledger, &rebuilder.databases).await?;
        store.close().await;
        helper.close().await;
        Ok(())
    }

    /// Records a swap whose owner died before it could do so. `away` has the tables that it took out of
    /// service.
    pub(super) async fn record_swap(&mut self, away: &str) -> Result<(), Error> {
        let rebuilder = self.rebuilder;
        rebuilder.report.say(
            "the tables were swapped before the interruption; now events since then are applied",
        );
        let previous = self.session.epoch_in(&self.live.ledger, away).await?;
        let mut batch = self.session.close_gate(&self.live.ledger).await?;
        batch.next_generation(&self.live.projection, previous).await?;
        batch.commit().await?;
        Ok(())
    }

    /// Whether the tables of `from` are in service.
    pub(super) async fn is_swapped(&mut self, from: &str) -> Result<bool, Error> {
        let live = &self.rebuilder.databases.live;
        let tables = tables_of_every_release(&self.tables, &self.live.ledger);
        is_swapped(&mut self.session, live, &tables, from).await
    }

    /// Applies the events that the tables in service may lack.
    pub(super) async fn catch_up_in_service(&mut self) -> Result<(), Error> {
        let rebuilder = self.rebuilder;
        let session = Session::connect(&rebuilder.mysql).await?;
        let mut target = Target::of(Arc::new(rebuilder.model()), session, &rebuilder.mysql).await?;
        failpoint!("rebuild::before-last-catch-up");
        let mut pace =
            RebuildPace::of_comparison(&rebuilder.report, &rebuilder.store, &mut self.session);
        match rebuilder.catch_up(&mut target, &mut pace).await {
            // A paused projection applies nothing; after `resume`, the sweeper does this.
            Ok(()) | Err(Error::Work(WorkError::Paused { .. })) => {}
            Err(error) => return Err(error),
        }
        target.close().await;
        Ok(())
    }
}

impl Rebuilder {
    /// Lets streams go on that are parked at an event which a person has left out since these tables were
    /// taken out of service.
    pub(super) async fn release_skipped(&self, target: &mut Target) -> Result<(), Error> {
        let (session, model) = target.session();
        let skips = model.skips();
        let parked = session.parked(&model.ledger).await?;
        let mut store = event_store::Session::connect(&self.store).await?;
        for stream in parked.iter().filter(|stream| skips.contains_parked(stream)) {
            let retried = retry_or_skip(session, model, &mut store, stream, Decision::Retry).await;
            // It stays parked where the event store contradicts the tables.
            if let Err(ParkedError::Work(error)) = retried {
                return Err(error.into());
            }
        }
        store.close().await;
        Ok(())
    }
}

/// The tables that decide whether a swap has happened. Earlier releases had no table of migrations, and swap
/// without it.
pub(super) fn tables_of_every_release<'t>(
    tables: &'t [String],
    ledger: &Ledger,
) -> Vec<&'t String> {
    tables.iter().filter(|table| *table != ledger.migrations_table()).collect()
}

/// Applies the events that the live tables may have and the new ones lack.
async fn catch_up_with_live(
    target: &mut Target,
    store: &mut event_store::Session,
    helper: &mut Session,
    live: &ReadModel,
) -> Result<(), Error> {
    if !target.model.is_ordered() {
        return Ok(target.catch_up_streams(store).await?);
    }
    // Later events are not decided, or belong to the one batch that has not moved the checkpoint yet. They are
    // applied after the swap.
    if let Some(checkpoint) = helper.checkpoint(&live.ledger).await? {
        target.catch_up_in_order(store, checkpoint.position).await?;
    }
    Ok(())
}

/// Names the sessions that hold one of the tables.
async fn readers(
    helper: &mut Session,
    mysql: &Options,
    tables: &[String],
) -> Result<String, Error> {
    match helper.table_holders(tables).await {
        Ok(holders) if holders.is_empty() => Ok("it has gone meanwhile".to_owned()),
        Ok(holders) => Ok(list(&holders)),
        Err(error) => {
            *helper = Session::connect(mysql).await?;
            Ok(error.to_string())
        }
    }
}

async fn is_swapped(
    session: &mut Session,
    live: &str,
    tables: &[&String],
    from: &str,
) -> Result<bool, Error> {
    let left = session.count_tables(from, tables).await?;
    let live = session.count_tables(live, tables).await?;
    Ok(left == 0 && live == tables.len())
}
