//! How much a worker claims at once: what the broker can confirm in good time.
//!
//! A batch that is not confirmed before `relay.confirm_timeout` costs its connection, and what was not
//! confirmed is sent again. On a slow link, batches must therefore be small. A worker begins with small
//! batches, doubles them while the broker confirms them quickly, and shrinks them when it does not.

use std::time::Duration;

/// The first batch of a worker.
const FIRST_EVENTS: u32 = 64;
const FIRST_BYTES: u64 = 64 * 1024;
/// A batch should take at most one part in this many of the confirm timeout.
const TARGET: u32 = 4;

/// The size of a worker's next batch.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    events: u32,
    bytes: u64,
    /// `relay.batch_size` and `relay.batch_bytes`
    most: (u32, u64),
    target: Duration,
    slow: bool,
}

impl Pace {
    pub(crate) fn new(most_events: u32, most_bytes: u64, confirm_timeout: Duration) -> Self {
        Self {
            events: FIRST_EVENTS.min(most_events),
            bytes: FIRST_BYTES.min(most_bytes),
            most: (most_events, most_bytes),
            target: confirm_timeout / TARGET,
            slow: false,
        }
    }

    /// At most this many events in the next batch.
    pub(crate) fn events(&self) -> u32 {
        self.events
    }

    /// At most this many bytes in the next batch, unless a single event has more.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the broker, or the link to it, is so slow that batches are limited.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Whether a batch of this size used most of what was allowed.
    pub(crate) fn is_full(&self, events: u32, bytes: u64) -> bool {
        events >= self.events / 2 || bytes >= self.bytes / 2
    }

    /// The broker has answered for a batch after this time.
    pub(crate) fn answered(&mut self, events: u32, bytes: u64, took: Duration) {
        self.slow = took > self.target / 2;
        if took > self.target {
            self.shrink(events, bytes, took);
        } else if !self.slow && self.is_full(events, bytes) {
            self.events = self.events.saturating_mul(2).min(self.most.0);
            self.bytes = self.bytes.saturating_mul(2).min(self.most.1);
        }
    }

    /// The time was up when the broker had confirmed so much of a batch.
    pub(crate) fn interrupted(&mut self, events: u32, bytes: u64, took: Duration) {
        self.slow = true;
        self.shrink(events, bytes, took);
    }

    /// Allows what the link carries in the target time.
    fn shrink(&mut self, events: u32, bytes: u64, took: Duration) {
        let part = self.target.as_secs_f64() / took.max(self.target).as_secs_f64();
        self.events =
            scaled(u64::from(events), part).try_into().unwrap_or(u32::MAX).min(self.events);
        self.bytes = scaled(bytes, part).min(self.bytes);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an estimate of a positive number far below 2^52"
)]
fn scaled(number: u64, part: f64) -> u64 {
    (number as f64 * part).max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn a_fast_broker_gets_full_batches_soon() {
        let mut pace = Pace::new(500, 8 << 20, TIMEOUT);
        for _ in 0..8 {
            let (events, bytes) = (pace.events(), pace.bytes());
            pace.answered(events, bytes, Duration::from_millis(5));
        }
        assert_eq!((pace.events(), pace.bytes(), pace.is_slow()), (500, 8 << 20, false));
    }

    /// A batch that is not full proves nothing about a larger one.
    #[test]
    fn small_batches_do_not_widen_the_limit() {
        let mut pace = Pace::new(500, 8 << 20, TIMEOUT);
        pace.answered(1, 100, Duration::from_millis(5));
        assert_eq!(pace.events(), FIRST_EVENTS);
    }

    /// However slow the link is, batches that it can carry in time follow after a few timeouts.
    #[test]
    fn every_rate_above_one_event_in_a_timeout_makes_progress() {
        for rate in [0.11, 0.5, 1.0, 7.0, 40.0, 1_000.0] {
            let mut pace = Pace::new(500, 8 << 20, TIMEOUT);
            let mut timeouts = 0;
            for _ in 0..100 {
                let events = pace.events();
                let needed = Duration::from_secs_f64(f64::from(events) / rate);
                if needed > TIMEOUT {
                    timeouts += 1;
                    let confirmed = scaled(1, 10.0 * rate).try_into().unwrap();
                    pace.interrupted(confirmed, u64::from(confirmed) * 500, TIMEOUT);
                } else {
                    pace.answered(events, u64::from(events) * 500, needed);
                }
            }
            assert!(timeouts <= 1, "{rate} events per second: {timeouts} timeouts");
        }
    }
}
