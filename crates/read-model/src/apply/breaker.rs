//! The circuit breaker, which pauses a projection before it parks a large part of its streams.

use crate::ParkedStream;

/// The limits above which the projection, rather than its events, is assumed to be wrong.
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    /// The most streams that may be parked within the window.
    pub streams: u64,
    /// The window, in seconds.
    pub window: u64,
    /// The most streams that one batch may park, in percent of its streams. It applies from ten parked
    /// streams on.
    pub percent: u64,
}

impl Breaker {
    /// Never trips. It is for replays, which check the number of parked streams at their end, and for
    /// commands of a person.
    pub const NONE: Self = Self { streams: u64::MAX, window: 1, percent: 100 };

    /// The reason to pause the projection, if a limit is exceeded.
    ///
    /// `parked` lists the streams that the batch would park, `recently` is the number of streams that were
    /// parked within the window before, and `streams` is the number of streams in the batch.
    pub(super) fn trips(
        self,
        parked: &[ParkedStream],
        recently: u64,
        streams: usize,
    ) -> Option<String> {
        let now = parked.len() as u64;
        let too_many = recently.saturating_add(now) > self.streams;
        let too_large_a_part = now >= 10 && now * 100 > self.percent * streams as u64;
        if !too_many && !too_large_a_part {
            return None;
        }
        let extent = if too_many {
            format!("{} streams could not go on within {} s", recently + now, self.window)
        } else {
            format!("{now} of {streams} streams could not go on")
        };
        let ParkedStream { event_id, stream_id, version, reason, .. } = parked.first()?;
        Some(format!(
            "{extent}; one of them is {stream_id}, at event {event_id}, version {version}: {reason}"
        ))
    }
}
