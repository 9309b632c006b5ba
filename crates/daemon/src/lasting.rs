//! When to log a failure that lasts: at its beginning, once for each other reason, and at growing intervals.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The pause before a failure that lasts is logged again. It doubles each time.
const AGAIN_MIN: Duration = Duration::from_mins(1);
/// The longest such pause.
const AGAIN_MAX: Duration = Duration::from_hours(1);
/// The most reasons that are logged about one failure.
const REASONS_MAX: usize = 8;

/// What was logged about a failure. Drop it when the failure ends.
#[derive(Debug, Default)]
pub struct Lasting {
    /// The reasons, without their numbers, which change while the failure lasts.
    reasons: BTreeSet<String>,
    failures: u64,
    /// When to say that it lasts, and the pause before that.
    again: Option<(Instant, Duration)>,
}

/// Why a failure is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// It begins, or has another reason now.
    Begins,
    /// It lasts.
    Lasts,
}

impl Lasting {
    /// Counts an attempt that failed. Returns whether to log it, and why.
    pub fn failed(&mut self, reason: &str) -> Option<Log> {
        self.failed_at(reason, Instant::now())
    }

    /// The number of attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    fn failed_at(&mut self, reason: &str, now: Instant) -> Option<Log> {
        self.failures += 1;
        let kind: String = reason.chars().filter(|char| !char.is_ascii_digit()).collect();
        let (at, pause) = *self.again.get_or_insert((now + AGAIN_MIN, AGAIN_MIN));
        if self.reasons.len() < REASONS_MAX && self.reasons.insert(kind) {
            return Some(Log::Begins);
        }
        if now < at {
            return None;
        }
        let pause = AGAIN_MAX.min(pause * 2);
        self.again = Some((now + pause, pause));
        Some(Log::Lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_is_logged_for_each_reason_and_at_growing_intervals() {
        let mut lasting = Lasting::default();
        let begun = Instant::now();
        let mut lines = Vec::new();
        for seconds in 0..7_200 {
            // Two reasons take turns, and a number changes.
            let reason = match seconds % 3 {
                0 => format!("{seconds} streams wait"),
                _ => "the broker is away".to_owned(),
            };
            if let Some(log) = lasting.failed_at(&reason, begun + Duration::from_secs(seconds)) {
                lines.push((seconds, log));
            }
        }
        let minutes = |minutes: u64| (minutes * 60, Log::Lasts);
        let all = [(0, Log::Begins), (1, Log::Begins)];
        let again = [1, 3, 7, 15, 31, 63].map(minutes);
        assert_eq!(lines, all.into_iter().chain(again).collect::<Vec<_>>());
        assert_eq!(lasting.failures(), 7_200);
    }

    #[test]
    fn reasons_without_end_are_not_logged_without_end() {
        let (mut lasting, now) = (Lasting::default(), Instant::now());
        let letters = ('a'..='z').filter_map(|letter| lasting.failed_at(&letter.to_string(), now));
        assert_eq!(letters.count(), REASONS_MAX);
    }
}
