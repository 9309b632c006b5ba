//! Whether the batches of a projection succeed. The state outlives consumers.
//!
//! A consumer whose batches fail gives its deliveries back and ends, so that another instance can try. The next
//! consumer opens without an error and fails again. So an open consumer proves nothing: only a batch that
//! succeeds does, or a queue that stays quiet because another instance has applied its events.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::Probe;

/// A queue that brings nothing for this long brings the events of failed batches to another instance. Each
/// instance that fails keeps deliveries for about 7 s, and then it is the turn of the next one.
pub(super) const QUIET: Duration = Duration::from_secs(20);

/// A lane of a queue. All events of a stream go through the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) queue: usize,
    pub(super) lane: usize,
}

/// Reports whether batches fail.
pub(crate) struct Batches {
    probe: Probe,
    failing: Mutex<HashSet<Place>>,
}

impl Batches {
    pub(super) fn new(probe: Probe) -> Self {
        probe.ok();
        Self { probe, failing: Mutex::default() }
    }

    /// Reports that every batch of a lane has failed for a while.
    pub(super) fn failed(&self, place: Place, reason: &str) {
        let mut failing = self.lock();
        failing.insert(place);
        self.probe.failing(reason);
    }

    /// Reports that a batch was applied.
    pub(super) fn succeeded(&self, place: Place) {
        self.forget(|failed| *failed == place);
    }

    /// Reports that a queue has brought no event for [`QUIET`].
    pub(super) fn quiet(&self, queue: usize) {
        self.forget(|failed| failed.queue == queue);
    }

    fn forget(&self, works: impl Fn(&Place) -> bool) {
        let mut failing = self.lock();
        let before = failing.len();
        failing.retain(|place| !works(place));
        if before > 0 && failing.is_empty() {
            self.probe.ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Place>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use daemon::Health;

    use super::*;

    #[test]
    fn only_the_lane_that_failed_can_recover() {
        let health = Health::default();
        let batches = Batches::new(health.probe("projection", None));
        let (one, other) = (Place { queue: 0, lane: 1 }, Place { queue: 1, lane: 1 });
        let ready = || health.report().0;
        assert!(ready());
        batches.failed(one, "locked");
        batches.failed(other, "locked");
        batches.succeeded(Place { queue: 0, lane: 0 });
        batches.succeeded(one);
        assert!(!ready());
        batches.quiet(0);
        assert!(!ready());
        batches.quiet(1);
        assert!(ready());
    }
}
