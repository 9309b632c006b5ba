//! What the queues of a projection bring, and whether its batches succeed. The state outlives consumers.
//!
//! A consumer whose batches fail gives its deliveries back and ends, so that another instance can try. The next
//! consumer opens without an error and fails again. So an open consumer proves nothing: only a batch that
//! succeeds does, or a queue that stays quiet because another instance has applied its events.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::{Probe, chain};
use read_model::QueueUse;
use tokio::time::Instant;

use crate::error::ServerError;

/// A queue that brings nothing for this long brings the events of failed batches to another instance. Each
/// instance that fails keeps deliveries for about 7 s, and then it is the turn of the next one.
pub(super) const QUIET: Duration = Duration::from_secs(20);
/// A batch that takes longer may wait for a lock.
const SLOW: Duration = Duration::from_secs(1);

/// A lane of a queue. All events of a stream go through the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) queue: usize,
    pub(super) lane: usize,
}

/// Reports whether batches fail, and counts deliveries.
pub(crate) struct Batches {
    probe: Probe,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The batches that run, and since when.
    running: HashMap<Place, Instant>,
    /// The lanes of which every batch has failed for a while.
    failing: HashSet<Place>,
    /// Why the last of them failed.
    reason: String,
    /// Whether it had waited for a lock.
    locked: bool,
    /// Who holds locks for which batches wait, or why that is unknown.
    blockers: Option<String>,
    queues: Vec<QueueUse>,
}

impl State {
    fn reason(&self) -> String {
        match &self.blockers {
            Some(blockers) if self.locked => {
                format!("batches wait for locks in MySQL: {blockers}")
            }
            _ => self.reason.clone(),
        }
    }

    fn queue(&mut self, number: usize) -> &mut QueueUse {
        if self.queues.len() <= number {
            self.queues.resize(number + 1, QueueUse::default());
        }
        &mut self.queues[number]
    }
}

impl Batches {
    pub(crate) fn new(probe: Probe) -> Self {
        probe.ok();
        Self { probe, state: Mutex::default() }
    }

    /// Reports that a consumer of a queue begins.
    pub(super) fn opened(&self, queue: usize) {
        let mut state = self.lock();
        state.running.retain(|place, _| place.queue != queue);
        state.queue(queue).opened += 1;
    }

    /// Reports that a batch begins.
    pub(super) fn began(&self, place: Place) {
        self.lock().running.insert(place, Instant::now());
    }

    /// Reports that a batch has ended.
    pub(super) fn ended(&self, place: Place) {
        self.lock().running.remove(&place);
    }

    /// Reports that a batch was applied.
    pub(super) fn succeeded(&self, place: Place) {
        self.forget(|failed| *failed == place);
    }

    /// Reports that every batch of a lane has failed for a while.
    pub(super) fn failed(&self, place: Place, error: &ServerError) {
        let mut state = self.lock();
        state.failing.insert(place);
        state.reason = chain(error);
        state.locked = error.is_lock_wait();
        self.probe.failing(&state.reason());
    }

    /// Why batches fail; `None` while they succeed.
    pub(super) fn reason(&self) -> Option<String> {
        let state = self.lock();
        (!state.failing.is_empty()).then(|| state.reason())
    }

    /// Reports that a queue has brought no event for [`QUIET`].
    pub(super) fn quiet(&self, queue: usize) {
        self.forget(|failed| failed.queue == queue);
    }

    /// Forgets failures, when the projection stops for another reason.
    pub(super) fn reset(&self) {
        self.forget(|_failed| true);
    }

    /// Counts deliveries.
    pub(super) fn delivered(&self, queue: usize, deliveries: usize) {
        self.lock().queue(queue).delivered += deliveries as u64;
    }

    /// Records how many deliveries are not settled.
    pub(super) fn holds(&self, queue: usize, unsettled: usize) {
        self.lock().queue(queue).unsettled = unsettled as u64;
    }

    /// What each queue has brought to this instance.
    pub(crate) fn queues(&self) -> Vec<QueueUse> {
        self.lock().queues.clone()
    }

    /// Whether a batch may be waiting for a lock.
    pub(crate) fn may_wait(&self) -> bool {
        let state = self.lock();
        !state.failing.is_empty() || state.running.values().any(|since| since.elapsed() >= SLOW)
    }

    /// Records who holds locks for which batches wait. What was seen last stays: between two attempts, no batch
    /// waits.
    pub(crate) fn blocked_by(&self, blockers: String) {
        let mut state = self.lock();
        state.blockers = Some(blockers);
        if !state.failing.is_empty() {
            self.probe.failing(&state.reason());
        }
    }

    fn forget(&self, works: impl Fn(&Place) -> bool) {
        let mut state = self.lock();
        let before = state.failing.len();
        state.failing.retain(|place| !works(place));
        if state.failing.is_empty() {
            state.blockers = None;
            if before > 0 {
                self.probe.ok();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use daemon::Health;
    use read_model::Error;

    use super::*;

    #[test]
    fn only_the_lane_that_failed_can_recover() {
        let health = Health::default();
        let batches = Batches::new(health.probe("projection", None));
        let (one, other) = (Place { queue: 0, lane: 1 }, Place { queue: 1, lane: 1 });
        let ready = || health.report().0;
        let error = ServerError::ReadModel(Error::Overtaken);
        assert!(ready());
        batches.failed(one, &error);
        batches.failed(other, &error);
        batches.succeeded(Place { queue: 0, lane: 0 });
        batches.succeeded(one);
        assert!(!ready());
        batches.quiet(0);
        assert!(!ready());
        batches.quiet(1);
        assert!(ready());
    }
}
