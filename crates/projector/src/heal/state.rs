//! The state of the sweeper for one projection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Health, Probe};
use domain_events::{Position, StreamId, StreamRange, StreamVersion};
use read_model::ReadModel;
use uuid::Uuid;

use super::silent::Silent;
use super::unserved::Unserved;
use crate::history::LaggingStream;

/// The largest number of positions that are compared at once, not counting a gap before them.
const WINDOW: i64 = 20_000;
/// While its queue is not empty, a missing event may still be in it. After this many graces it counts as lost
/// all the same.
const GRACES_IN_QUEUE: u32 = 12;

/// The state of the sweeper for one projection.
pub(super) struct State {
    pub(super) model: Arc<ReadModel>,
    /// Identifies the tables that the state describes; a rebuild changes it.
    pub(super) epoch: Option<Uuid>,
    /// The end of the positions that were compared.
    pub(super) seen: Option<Position>,
    /// Compared windows with lagging streams, as `after < position <= end`.
    pub(super) open: BTreeMap<Position, Position>,
    /// Lagging streams: the last applied version, and since when it has not changed.
    pub(super) lagging: HashMap<StreamId, (i64, Instant)>,
    /// When the queues last had no message that may still be delivered.
    pub(super) drained: Option<Instant>,
    pub(super) unserved: Unserved,
    pub(super) silent: Silent,
    pub(super) probe: Probe,
    pub(super) queues: Probe,
}

impl State {
    pub(super) fn new(model: Arc<ReadModel>, health: &Health, unserved: Unserved) -> Self {
        let probe = health.probe(&format!("projection {} lag", model.name()), None);
        let queues = health.probe(&format!("projection {} queues", model.name()), None);
        probe.ok();
        queues.ok();
        Self {
            model,
            epoch: None,
            seen: None,
            open: BTreeMap::new(),
            lagging: HashMap::new(),
            drained: None,
            unserved,
            silent: Silent::default(),
            probe,
            queues,
        }
    }

    /// Resets the state when another instance may take over the checkpoint. The versions of lagging streams
    /// stay: versions only grow, so a stream with the same version later has made no progress.
    pub(super) fn release(&mut self) {
        self.seen = None;
        self.open.clear();
        self.probe.ok();
    }

    /// Resets the state of the queues, when their messages could not be counted.
    pub(super) fn forget_queues(&mut self) {
        self.unserved.forget();
        self.queues.ok();
    }

    /// Reports in `/readyz` which queues are stuck or silent.
    pub(super) fn report_queues(&self, stuck: &[&str], all: &[&str]) {
        let queues = stuck;
        if queues.is_empty() {
            match self.silent.reason(all) {
                None => self.queues.ok(),
                Some(reason) => self.queues.failing(&reason),
            }
            return;
        }
        let (queues, name) = (queues.join(", "), self.model.name());
        self.queues.failing(&format!(
            "RabbitMQ has delivered no message of {queues} to any instance for {} s, although instances consume it; \
             its events are applied from the event store instead. Look for a dead node of the cluster or a consumer \
             of another program; the last remedy is `projector topology reset {name}`. OPERATIONS.md has more \
             under \"Queues\"",
            self.unserved.limit().as_secs()
        ));
    }

    /// Resets everything that is known of the tables, after a rebuild has swapped them.
    pub(super) fn forget(&mut self) {
        self.seen = None;
        self.open.clear();
        self.lagging.clear();
        self.probe.ok();
    }

    /// The windows to compare: those with lagging streams, and new positions.
    pub(super) async fn windows(
        &self,
        store: &mut event_store::Session,
        seen: Position,
        until: Position,
    ) -> Result<Vec<(Position, Position)>, event_store::Error> {
        let mut windows: Vec<_> = self.open.iter().map(|(after, end)| (*after, *end)).collect();
        let mut after = seen;
        while after < until {
            let from = store.skip_gap(after, until).await?;
            let end = Position::new(from.get() + WINDOW).map_or(until, |end| end.min(until));
            windows.push((after, end));
            after = end;
        }
        Ok(windows)
    }

    /// Records a compared window. `clean` means that it has no lagging stream.
    pub(super) fn compared(&mut self, (after, end): (Position, Position), clean: bool) {
        if clean {
            self.open.remove(&after);
            return;
        }
        // Merged with the window before it: while a stream makes no progress, small windows would pile up.
        let before = self.open.range(..after).next_back().map(|(after, end)| (*after, *end));
        match before {
            Some((start, middle)) if middle == after && end.get() - start.get() <= WINDOW => {
                self.open.remove(&after);
                self.open.insert(start, end);
            }
            _ => {
                self.open.insert(after, end);
            }
        }
    }

    /// Records lagging streams and returns the events that count as lost: their stream has made no progress for
    /// `grace`, and the queues were empty since. Without an empty queue, the limit is [`GRACES_IN_QUEUE`]
    /// graces.
    pub(super) fn track(
        &mut self,
        lagging: &HashMap<StreamId, LaggingStream>,
        grace: Duration,
    ) -> Vec<StreamRange> {
        let now = Instant::now();
        let mut seen = HashMap::new();
        let mut due = Vec::new();
        for LaggingStream { stream_id, applied, stored, .. } in lagging.values() {
            let known = self.lagging.get(stream_id);
            // A stream that has made progress is being delivered.
            let since = known.filter(|(before, _)| before == applied).map_or(now, |known| known.1);
            let waited = now - since;
            let drained = self.drained.is_some_and(|drained| drained >= since);
            if waited >= grace
                && (drained || waited >= grace * GRACES_IN_QUEUE)
                && let Ok(from) = StreamVersion::new(applied + 1)
            {
                due.push(StreamRange { stream_id: stream_id.clone(), from, to: *stored });
            }
            seen.insert(stream_id.clone(), (*applied, since));
        }
        self.lagging = seen;
        due
    }
}
