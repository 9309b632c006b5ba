//! How many lanes a worker claims at once, so that all workers get a fair share.

use std::sync::atomic::{AtomicU16, Ordering};

use event_store::Lane;

/// Set by the survey, read by the workers.
pub(crate) struct LaneShare {
    lanes: AtomicU16,
    /// `relay.lanes_per_claim`
    limit: u16,
}

impl LaneShare {
    /// Starts with `limit` lanes, until the workers have been counted.
    pub(crate) fn new(limit: u16) -> Self {
        Self { lanes: AtomicU16::new(limit), limit }
    }

    /// How many lanes a worker should claim now.
    pub(crate) fn lanes(&self) -> u16 {
        self.lanes.load(Ordering::Relaxed)
    }

    /// Divides the lanes among `workers`.
    pub(crate) fn divide(&self, workers: u32) {
        self.lanes.store(share(workers, self.limit), Ordering::Relaxed);
    }
}

/// An equal part of the lanes, at least one and at most `limit`.
fn share(workers: u32, limit: u16) -> u16 {
    let share = u32::from(Lane::COUNT).div_ceil(workers.max(1));
    u16::try_from(share).unwrap_or(Lane::COUNT).clamp(1, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_lanes_evenly() {
        for (workers, limit, expected) in
            [(0, 16, 16), (1, 64, 64), (2, 16, 16), (4, 64, 16), (16, 16, 4), (100, 16, 1)]
        {
            assert_eq!(share(workers, limit), expected, "{workers} workers, at most {limit}");
        }
    }
}
