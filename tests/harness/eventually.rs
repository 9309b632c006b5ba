//! Waiting for a condition instead of for a time.

use std::panic::Location;
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Longer than anything takes that works.
const LIMIT: Duration = Duration::from_mins(2);

/// Waits until a condition gives a value.
///
/// # Panics
///
/// With the caller's place, when it does not within two minutes.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    condition: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    within(LIMIT, what, condition)
}

/// The same, for what takes longer.
///
/// # Panics
///
/// With the caller's place, when it does not happen in time.
#[track_caller]
pub fn within<T>(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let started = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(started.elapsed() < limit, "{what}: not within {limit:?} ({caller})");
            sleep(Duration::from_millis(25)).await;
        }
    }
}
