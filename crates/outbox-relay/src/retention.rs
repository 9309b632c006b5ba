//! Deletes published rows in the background. Of several relays, one at a time deletes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Failure, Probe, chain};
use event_store::{Deleted, OutboxId, Session};
use tokio::time::sleep;

use crate::context::Context;

/// Rows checked in one transaction.
const PAGE: u32 = 2_000;
/// How often to check for rows that have become old enough.
const INTERVAL: Duration = Duration::from_secs(5);
/// Deleting takes one part in this many of the time, so that it does not slow publishing down.
const DUTY: u32 = 4;
/// How often to restart from the first row, for rows that were held when they were passed over.
const FULL_INTERVAL: Duration = Duration::from_mins(30);

/// Deletes until shutdown.
pub(crate) async fn delete_old_rows(context: Arc<Context>, probe: Probe) -> Result<(), Failure> {
    let mut cleaner =
        Cleaner { session: None, after: OutboxId::from(0), restarted: Instant::now() };
    while !context.shutdown.is_cancelled() {
        let started = Instant::now();
        let pause = match context.shutdown.run_until_cancelled(cleaner.step(&context)).await {
            None => break,
            Some(Ok(page)) => {
                probe.ok();
                match page {
                    Page::Deleted => started.elapsed() * (DUTY - 1),
                    Page::NothingOld => INTERVAL,
                }
            }
            Some(Err(error)) => {
                probe.failing(&chain(&error));
                cleaner.session = None;
                INTERVAL
            }
        };
        context.shutdown.run_until_cancelled(sleep(pause)).await;
    }
    Ok(())
}

struct Cleaner {
    session: Option<Session>,
    /// The last row checked. Scans begin after it, because index entries of deleted rows may remain
    /// before it and would have to be read again.
    after: OutboxId,
    /// When the scan last started from the first row.
    restarted: Instant,
}

/// What one transaction did.
enum Page {
    /// It deleted rows; there may be more.
    Deleted,
    /// No row is old enough, or another relay deletes.
    NothingOld,
}

impl Cleaner {
    async fn step(&mut self, context: &Context) -> Result<Page, event_store::Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&context.store).await?,
        };
        if self.restarted.elapsed() >= FULL_INTERVAL {
            self.restarted = Instant::now();
            self.after = OutboxId::from(0);
        }
        let retention = context.settings.retention;
        let deleted = session.delete_processed(retention, self.after, PAGE).await?;
        self.session = Some(session);
        match deleted {
            Deleted::Rows { count, last } => {
                self.after = last;
                context.metrics.deleted.inc_by(count);
                Ok(Page::Deleted)
            }
            Deleted::Elsewhere | Deleted::None => Ok(Page::NothingOld),
        }
    }
}
