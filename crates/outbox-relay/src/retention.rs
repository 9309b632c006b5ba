//! Deleting published rows in the background, in one relay at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Failure, Probe, chain};
use event_store::{Deleted, OutboxId, Session};
use tokio::time::sleep;

use crate::worker::Shared;

/// Rows looked at in one transaction.
const PAGE: u32 = 2_000;
/// How often to look for rows that have become old enough.
const INTERVAL: Duration = Duration::from_secs(5);
/// Deleting takes at most this part of the time, so that publishing does not notice it.
const DUTY: u32 = 4;
/// How often to start from the first row, for those that were passed over while they waited.
const FULL_INTERVAL: Duration = Duration::from_mins(30);

/// Deletes until shutdown.
pub(crate) async fn delete_old_rows(shared: Arc<Shared>, probe: Probe) -> Result<(), Failure> {
    let mut round = Round { session: None, after: OutboxId::from(0), begun: Instant::now() };
    while !shared.shutdown.is_cancelled() {
        let started = Instant::now();
        let pause = match shared.shutdown.run_until_cancelled(round.step(&shared)).await {
            None => break,
            Some(Ok(more)) => {
                probe.ok();
                if more { started.elapsed() * (DUTY - 1) } else { INTERVAL }
            }
            Some(Err(error)) => {
                probe.failing(&chain(&error));
                round.session = None;
                INTERVAL
            }
        };
        shared.shutdown.run_until_cancelled(sleep(pause)).await;
    }
    Ok(())
}

struct Round {
    session: Option<Session>,
    /// What is before it was looked at: its index entries are dead, but perhaps still there.
    after: OutboxId,
    /// When the rows were last looked at from the first one on.
    begun: Instant,
}

impl Round {
    /// Deletes one page; says whether there may be more.
    async fn step(&mut self, shared: &Shared) -> Result<bool, event_store::Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&shared.store).await?,
        };
        if self.begun.elapsed() >= FULL_INTERVAL {
            self.begun = Instant::now();
            self.after = OutboxId::from(0);
        }
        let deleted = session.delete_processed(shared.settings.retention, self.after, PAGE).await?;
        self.session = Some(session);
        match deleted {
            Deleted::Rows { count, last } => {
                self.after = last;
                shared.metrics.deleted.inc_by(count);
                Ok(true)
            }
            Deleted::Elsewhere | Deleted::None => Ok(false),
        }
    }
}
