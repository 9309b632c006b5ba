//! Putting tables in service.
//!
//! The gate is closed, what came meanwhile is applied, and all tables are swapped by one statement. The
//! gate is for speed: after the swap, everything between the checkpoint of the new tables and a fence
//! taken then is applied again, and versions make that harmless.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::replay::{Course, Target};
use super::{Owned, crash};
use crate::mysql::{JobState, Passage, Session, Swap};
use crate::trouble::Trouble;

/// The longest pause between two attempts to swap.
const SWAP_PAUSE: Duration = Duration::from_secs(2);

impl Owned<'_> {
    /// Swaps the tables of `target`, in the database `from`, with those in service, which go `away`.
    pub(super) async fn cut_over(
        &mut self,
        target: &mut Target,
        (state, from, away): (JobState, &str, &str),
    ) -> Result<(), Trouble> {
        let rebuilder = self.rebuilder;
        let mut helper = Session::connect(&rebuilder.mysql).await?;
        let mut store = event_store::Session::connect(&rebuilder.store).await?;
        self.enter(state).await?;
        crash::point("cutting over");
        // Where the tables in service go, there must be none. On the session that owns the rebuild, so
        // that nobody does it who has lost that.
        self.session.make_database(away).await?;
        self.session.drop_tables(away, &self.tables).await?;
        crash::point("the place for the old tables is free");
        self.session.note_swapping(&self.live.ledger, true).await?;
        crash::point("batches look which tables they meet");
        let mut pause = Duration::from_millis(100);
        loop {
            target.fold_the_rest(&mut store).await?;
            let ticket = self.session.issue_ticket(&self.live.ledger, from).await?;
            crash::point("the gate is closed next");
            let closed = Instant::now();
            let (mut batch, _gate) = self.session.begin(&self.live.ledger, Passage::Alone).await?;
            crash::point("the gate is closed");
            target.fold_the_rest(&mut store).await?;
            crash::point("the new tables have everything");
            let live = &rebuilder.databases.live;
            let ways = [from, live, away];
            let swapped = match helper.swap(&rebuilder.mysql, &self.tables, &ticket, ways).await? {
                Swap::Done => true,
                Swap::Held => {
                    helper.void_tickets(&self.live.ledger, &rebuilder.databases).await?;
                    is_swapped(&mut helper, live, &self.tables, from).await?
                }
            };
            if swapped {
                crash::point("the tables are swapped");
                batch.next_generation(&rebuilder.projection).await?;
                crash::point("the swap is noted");
                batch.commit().await?;
                crash::point("the gate is open");
                let gap = closed.elapsed();
                rebuilder.report.say(&format!("swapped; no batch was applied for {gap:?}"));
                break;
            }
            batch.rollback().await?;
            rebuilder.report.say(&format!("a reader holds a table; trying again in {pause:?}"));
            sleep(pause).await;
            pause = SWAP_PAUSE.min(pause * 2);
        }
        helper.void_tickets(&self.live.ledger, &rebuilder.databases).await?;
        store.close().await;
        helper.close().await;
        Ok(())
    }

    /// Notes that other tables are in service, where that was interrupted.
    pub(super) async fn note_swap(&mut self) -> Result<(), Trouble> {
        let rebuilder = self.rebuilder;
        rebuilder.report.say("the new tables are in service already; what came since is applied");
        let (mut batch, _gate) = self.session.begin(&self.live.ledger, Passage::Alone).await?;
        batch.next_generation(&rebuilder.projection).await?;
        batch.commit().await?;
        Ok(())
    }

    /// Whether the tables of `from` are in service.
    pub(super) async fn is_swapped(&mut self, from: &str) -> Result<bool, Trouble> {
        let live = &self.rebuilder.databases.live;
        is_swapped(&mut self.session, live, &self.tables, from).await
    }

    /// Applies to the tables in service what they might lack.
    pub(super) async fn level(&mut self) -> Result<(), Trouble> {
        let rebuilder = self.rebuilder;
        let session = Session::connect(&rebuilder.mysql).await?;
        let mut target = Target::of(rebuilder.model(), session, &rebuilder.mysql).await?;
        crash::point("levelling next");
        let mut course = Course::of_look(&rebuilder.report, &mut self.session);
        match rebuilder.catch_up(&mut target, &mut course).await {
            // Then the sweeper does it, as soon as somebody resumes the projection.
            Ok(()) | Err(Trouble::Paused { .. }) => {}
            Err(trouble) => return Err(trouble),
        }
        target.close().await;
        crash::point("the tables in service are level");
        Ok(())
    }
}

async fn is_swapped(
    session: &mut Session,
    live: &str,
    tables: &[String],
    from: &str,
) -> Result<bool, Trouble> {
    let left = session.count_tables(from, tables).await?;
    let there = session.count_tables(live, tables).await?;
    Ok(left == 0 && there == tables.len())
}
