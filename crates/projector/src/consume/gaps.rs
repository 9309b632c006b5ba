//! Streams whose deliveries wait for missing events, and the task that reads those events.

use std::collections::HashMap;
use std::time::Duration;

use daemon::backoff::Backoff;
use domain_events::{StoredEvent, StreamId, StreamRange};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::lane::Pending;
use crate::history::History;

/// How long to wait for missing events to be delivered, before reading them from the event store.
const GAP_WAIT: Duration = Duration::from_millis(50);

/// The gaps of one queue. A *gap* is the range of events that is missing before a delivery of its stream.
pub(super) struct Gaps {
    streams: HashMap<StreamId, Gap>,
    /// The task that reads missing events; at most one.
    reading: JoinSet<Reading>,
    /// `None` while the task reads.
    history: Option<History>,
    /// The most deliveries that may wait.
    limit: usize,
    retry_max: Duration,
}

struct Gap {
    missing: StreamRange,
    waiting: Vec<Pending>,
    since: Instant,
    /// When to read the missing events.
    due: Instant,
    backoff: Backoff,
}

/// A finished read.
pub(super) struct Reading {
    history: History,
    missing: Vec<StreamRange>,
    result: Result<Vec<StoredEvent>, event_store::Error>,
}

/// The ranges of a read, and the events that it found.
pub(super) type Read = (Vec<StreamRange>, Result<Vec<StoredEvent>, event_store::Error>);

impl Gaps {
    pub(super) fn new(history: History, limit: usize, retry_max: Duration) -> Self {
        let (streams, reading) = (HashMap::new(), JoinSet::new());
        Self { streams, reading, history: Some(history), limit, retry_max }
    }

    /// Lets a delivery wait for the events before it. Returns it if too many wait already.
    pub(super) fn hold(&mut self, pending: Pending, missing: &StreamRange) -> Option<Pending> {
        let waiting: usize = self.streams.values().map(|gap| gap.waiting.len()).sum();
        let now = Instant::now();
        let gap = self.streams.entry(missing.stream_id.clone()).or_insert_with(|| Gap {
            missing: missing.clone(),
            waiting: Vec::new(),
            since: now,
            due: now + GAP_WAIT,
            backoff: Backoff::reconnect(self.retry_max),
        });
        gap.missing = missing.clone();
        if waiting >= self.limit {
            return Some(pending);
        }
        gap.waiting.push(pending);
        None
    }

    /// Starts to read missing events that are due, unless a read is running.
    pub(super) fn start_reading(&mut self) {
        let now = Instant::now();
        let due = self.streams.values().filter(|gap| gap.due <= now);
        let missing: Vec<StreamRange> =
            due.take(History::STREAMS_AT_ONCE).map(|gap| gap.missing.clone()).collect();
        if !missing.is_empty()
            && let Some(mut history) = self.history.take()
        {
            self.reading.spawn(async move {
                let result = history.read(&missing).await;
                Reading { history, missing, result }
            });
        }
    }

    /// When missing events are due next; `None` while a read is running.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.streams.values().map(|gap| gap.due).filter(|_| self.history.is_some()).min()
    }

    /// Waits for the running read; `None` without one. Cancel-safe.
    pub(super) async fn join_next(&mut self) -> Option<Result<Reading, JoinError>> {
        self.reading.join_next().await
    }

    /// Takes the result of a read, and allows the next one.
    pub(super) fn finish(&mut self, reading: Reading) -> Read {
        let Reading { history, missing, result } = reading;
        self.history = Some(history);
        (missing, result)
    }

    /// Removes the gap of a stream and returns the deliveries that waited; `None` without a gap.
    pub(super) fn close(&mut self, stream_id: &StreamId) -> Option<Vec<Pending>> {
        self.streams.remove(stream_id).map(|gap| gap.waiting)
    }

    /// After a failed read, schedules the next one. Returns the deliveries that have waited for longer than
    /// `limit`.
    pub(super) fn postpone(&mut self, missing: &[StreamRange], limit: Duration) -> Vec<Pending> {
        let now = Instant::now();
        let mut expired = Vec::new();
        for range in missing {
            if let Some(gap) = self.streams.get_mut(&range.stream_id) {
                gap.due = now + gap.backoff.failed();
                if now - gap.since > limit {
                    expired.append(&mut gap.waiting);
                }
            }
        }
        expired
    }

    /// The number of streams with a gap.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Aborts a running read and returns all deliveries that wait.
    pub(super) async fn abort(&mut self) -> Vec<Pending> {
        self.reading.shutdown().await;
        self.streams.drain().flat_map(|(_, gap)| gap.waiting).collect()
    }
}
