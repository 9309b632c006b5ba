//! How long to wait before a retry.

use std::time::Duration;

use rand::RngExt;

/// Exponential back-off with full jitter: each wait is a random part of a limit, which doubles up to a
/// cap.
///
/// Full jitter prevents many clients that lost the same server from returning at the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    /// The first limit between two attempts to connect.
    pub const RECONNECT_MIN: Duration = Duration::from_millis(100);

    /// Between two attempts to connect to a server: starts with a limit of 100 ms.
    pub fn reconnect(cap: Duration) -> Self {
        Self::new(Self::RECONNECT_MIN, cap)
    }

    /// Starts with a limit of `base`, and doubles it up to `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempts: 0 }
    }

    /// Counts a failure, and returns how long to wait after it.
    pub fn failed(&mut self) -> Duration {
        let delay = self.delay(self.attempts, rand::rng().random());
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// Counts a success: the next wait starts with the first limit again.
    pub fn succeeded(&mut self) {
        self.attempts = 0;
    }

    /// The wait after `attempts` earlier failures; `part` is a random number from 0 to 1.
    pub fn delay(&self, attempts: u32, part: f64) -> Duration {
        let factor = 2_u32.saturating_pow(attempts);
        self.base.saturating_mul(factor).min(self.cap).mul_f64(part.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_is_never_longer_than_the_cap(
            base in 0_u64..100_000, cap in 0_u64..100_000,
            attempts in any::<u32>(), part in 0.0..=1.0_f64,
        ) {
            let backoff = Backoff::new(Duration::from_millis(base), Duration::from_millis(cap));
            prop_assert!(backoff.delay(attempts, part) <= Duration::from_millis(cap));
        }

        #[test]
        fn the_limit_doubles_until_the_cap(attempts in 0_u32..20) {
            let cap = Duration::from_secs(30);
            let backoff = Backoff::new(Duration::from_millis(100), cap);
            let (now, next) = (backoff.delay(attempts, 1.0), backoff.delay(attempts + 1, 1.0));
            prop_assert!(next == (now * 2).min(cap));
        }
    }

    #[test]
    fn success_restarts_the_back_off() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_hours(1));
        for _ in 0..15 {
            backoff.failed();
        }
        backoff.succeeded();
        assert!(backoff.failed() <= Duration::from_millis(1));
    }
}
