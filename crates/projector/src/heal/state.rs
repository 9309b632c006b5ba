//! What the sweeper knows of one projection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::{Health, Probe};
use domain_events::{Position, StreamId, StreamRange, StreamVersion};
use read_model::ReadModel;
use uuid::Uuid;

use super::unserved::Unserved;
use crate::history::Behind;

/// Positions compared at once.
const WINDOW: i64 = 20_000;
/// While the queue is not empty, a missing event may still be in it; but not for ever.
const GRACES_IN_QUEUE: u32 = 12;

/// What is known of one projection.
pub(super) struct State {
    pub(super) model: Arc<ReadModel>,
    /// Tells the tables that it knows of from others.
    pub(super) epoch: Option<Uuid>,
    /// Up to here it was compared.
    pub(super) seen: Option<Position>,
    /// Windows with streams that are behind: from after where, up to where.
    pub(super) open: BTreeMap<Position, Position>,
    /// Streams that are behind: where they stood, and since when.
    pub(super) behind: HashMap<StreamId, (i64, Instant)>,
    /// When the queues last had nothing that would still come.
    pub(super) drained: Option<Instant>,
    pub(super) unserved: Unserved,
    /// Why stuck queues could not be deleted.
    pub(super) undeleted: Option<String>,
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
            behind: HashMap::new(),
            drained: None,
            unserved,
            undeleted: None,
            probe,
            queues,
        }
    }

    /// Lets another instance go on. What is known of streams stays true: one that has not moved when it
    /// is looked at again has not moved in between.
    pub(super) fn leave(&mut self) {
        self.seen = None;
        self.open.clear();
        self.probe.ok();
    }

    /// When it is not known what happens to the queues.
    pub(super) fn forget_queues(&mut self) {
        self.unserved.forget();
        self.undeleted = None;
        self.queues.ok();
    }

    /// Reports which queues are stuck and could not be deleted, and why.
    pub(super) fn report_stuck(&self, queues: &[&str]) {
        let Some(reason) = &self.undeleted else {
            self.queues.ok();
            return;
        };
        self.queues.failing(&format!(
            "RabbitMQ delivers the messages of {} to no instance, though all of them consume it; events \
             are read from the event store instead. The queue could not be deleted: {reason}. Stop all \
             projectors of this projection and start them again; OPERATIONS.md has more remedies under \
             \"Queues\"",
            queues.join(", ")
        ));
    }

    pub(super) fn forget(&mut self) {
        self.seen = None;
        self.open.clear();
        self.behind.clear();
        self.probe.ok();
    }

    /// What to compare: windows with streams that lagged before, and new positions.
    pub(super) fn windows(&self, seen: Position, until: Position) -> Vec<(Position, Position)> {
        let mut windows: Vec<_> = self.open.iter().map(|(after, end)| (*after, *end)).collect();
        let mut after = seen;
        while after < until {
            let end = Position::new(after.get() + WINDOW).map_or(until, |end| end.min(until));
            windows.push((after, end));
            after = end;
        }
        windows
    }

    pub(super) fn compared(&mut self, (after, end): (Position, Position), clean: bool) {
        if clean {
            self.open.remove(&after);
            return;
        }
        // While a stream is stuck, small windows would pile up.
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

    /// Remembers since when streams are behind, and gives those that count as lost.
    pub(super) fn note(
        &mut self,
        behind: &HashMap<StreamId, Behind>,
        grace: Duration,
    ) -> Vec<StreamRange> {
        let now = Instant::now();
        let mut seen = HashMap::new();
        let mut due = Vec::new();
        for Behind { stream_id, applied, stored, .. } in behind.values() {
            let known = self.behind.get(stream_id);
            // A stream that moved is being delivered.
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
        self.behind = seen;
        due
    }
}
