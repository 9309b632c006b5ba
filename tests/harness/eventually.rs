//! Waits for conditions instead of fixed times.

use std::panic::Location;
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// The default limit. Every condition of a working system is met much sooner.
const LIMIT: Duration = Duration::from_mins(2);

/// Waits until a condition returns a value.
///
/// # Panics
///
/// With the caller's location, when the condition returns no value within two minutes.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    condition: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    within(LIMIT, what, condition)
}

/// Waits until a condition returns a value, with a given limit.
///
/// # Panics
///
/// With the caller's location, when the condition returns no value in time.
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
