//! How many events per second the broker confirms.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The rate is that of this time.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts confirms of the last seconds. Cheap to clone; clones share their counts.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<VecDeque<(Instant, u32)>>>);

impl Meter {
    /// The broker has confirmed this many events.
    pub(crate) fn add(&self, events: u32) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.push_back((Instant::now(), events));
        while counts.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            counts.pop_front();
        }
    }

    /// Events per second.
    pub(crate) fn rate(&self) -> f64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = counts.iter().filter(|(at, _)| at.elapsed() <= WINDOW);
        recent.map(|(_, events)| f64::from(*events)).sum::<f64>() / WINDOW.as_secs_f64()
    }
}
