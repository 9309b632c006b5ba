//! Hints that something was appended, so that an idle relay need not wait for its next look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use daemon::backoff::Backoff;
use daemon::{Failure, chain};
use event_store::Listener;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::worker::Shared;

/// A quiet connection is looked at so often.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between the connection that listens and the workers.
#[derive(Default)]
pub(crate) struct Hint {
    listening: AtomicBool,
    arrived: Notify,
    /// When a writer was last asked for a hint that has not come yet.
    asked: Mutex<Option<Instant>>,
}

impl Hint {
    /// Whether an idle worker should ask for a hint now, and then look once more. It is asked for
    /// again after a while: a writer that took the request may have rolled back.
    pub(crate) fn is_wanted(&self, again_after: Duration) -> bool {
        if !self.listening.load(Ordering::Acquire) {
            return false;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = asked.is_none_or(|at| at.elapsed() >= again_after);
        if wanted {
            *asked = Some(Instant::now());
        }
        wanted
    }

    /// Waits for a hint; for ever when nobody listens. One waiting worker is woken by each.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn arrive(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.arrived.notify_one();
    }

    fn listen(&self, listening: bool) {
        self.listening.store(listening, Ordering::Release);
        // What came while nobody listened is not known.
        self.arrive();
    }
}

/// Listens until shutdown. Without it, events are found a little later.
pub(crate) async fn listen(
    shared: Arc<Shared>,
    options: event_store::Options,
) -> Result<(), Failure> {
    let mut reconnect = Backoff::new(Duration::from_millis(100), shared.settings.reconnect_max);
    while !shared.shutdown.is_cancelled() {
        let follow = follow(&shared, &options, &mut reconnect);
        let Some(error) = shared.shutdown.run_until_cancelled(follow).await else { break };
        shared.hint.listen(false);
        shared.metrics.lost("postgresql_listener");
        tracing::debug!(error = chain(&error), "no hints for now");
        shared.shutdown.run_until_cancelled(sleep(reconnect.failed())).await;
    }
    Ok(())
}

async fn follow(
    shared: &Shared,
    options: &event_store::Options,
    reconnect: &mut Backoff,
) -> event_store::Error {
    let mut listener = match Listener::connect(options).await {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    reconnect.succeeded();
    shared.hint.listen(true);
    loop {
        match listener.next(PATIENCE).await {
            Ok(true) => shared.hint.arrive(),
            Ok(false) => {}
            Err(error) => return error,
        }
    }
}
