//! Decides the verdict on each event of a batch from the events that were applied before. Pure: no clock,
//! no database.
//!
//! Deliveries arrive in any order, more than once, or not at all. Within a stream, versions decide: the
//! event with the next version is applied, one with a lower version is a duplicate, and one with a higher
//! version reveals a gap.

use std::collections::HashMap;

use domain_events::{EventId, Position, StoredEvent, StreamId, StreamRange, StreamVersion};

/// The last applied event of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    /// Its version.
    pub version: StreamVersion,
    /// Its id.
    pub event_id: EventId,
}

/// Where a stream stands: its last applied event, and whether it is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The last applied event; `None` before the first.
    pub last: Option<Last>,
    /// Whether the stream is parked: an event could not be applied, and a person must decide.
    pub is_parked: bool,
}

impl Head {
    /// The version to apply next.
    pub fn next(self) -> StreamVersion {
        self.last.map_or(StreamVersion::FIRST, |last| last.version.next())
    }
}

/// Where each known stream stands.
pub type Heads = HashMap<StreamId, Head>;

/// The decision on one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has the next version of its stream, and is applied.
    Apply,
    /// It was already applied.
    Duplicate,
    /// Another event with this version was applied. Either two event stores publish, or the event store
    /// lost commits. The stream is parked.
    Conflict {
        /// The event that was applied.
        applied: EventId,
    },
    /// Events before it are missing.
    Gap,
    /// It cannot be applied. Its stream is parked.
    Refused,
    /// Its stream is parked before it. When the stream goes on, the event is read from the event store.
    Parked,
}

/// The place of an event in its [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(usize);

/// An event with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned<'e> {
    event: &'e StoredEvent,
    verdict: Verdict,
    /// Its index in the events that were passed to [`Plan::of`].
    index: usize,
}

/// The verdicts on the events of a batch, and their effect on the bookkeeping.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan<'e> {
    /// Sorted by stream, then by version, then by the order in which they were passed.
    events: Vec<Planned<'e>>,
    /// The streams whose bookkeeping changes, sorted by stream id.
    pub steps: Vec<Step<'e>>,
    /// The versions that are missing.
    pub gaps: Vec<StreamRange>,
}

/// The change of one stream's bookkeeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'e> {
    /// The stream.
    pub stream_id: &'e StreamId,
    /// Where it stands before the batch.
    pub from: Head,
    /// Where it stands after the batch.
    pub to: Head,
    /// The position of the event that it has applied last in this batch, if any.
    pub position: Option<Position>,
}

impl<'e> Plan<'e> {
    /// Decides the verdict on each event. Of two events with the same version, the first one in `events` is
    /// applied.
    pub fn of(heads: &Heads, events: &[&'e StoredEvent]) -> Self {
        let planned = |(index, event): (usize, &&'e StoredEvent)| {
            // `decide` overwrites the verdict.
            Planned { event, verdict: Verdict::Duplicate, index }
        };
        let mut planned: Vec<_> = events.iter().enumerate().map(planned).collect();
        planned.sort_by_key(|one| (&one.event.stream_id, one.event.version, one.index));
        let (mut steps, mut gaps) = (Vec::new(), Vec::new());
        for stream in planned.chunk_by_mut(|a, b| a.event.stream_id == b.event.stream_id) {
            let stream_id = &stream[0].event.stream_id;
            let from = heads.get(stream_id).copied().unwrap_or_default();
            let (to, gap) = decide(from, stream);
            if to != from {
                let applied = stream.iter().rev().find(|one| one.verdict == Verdict::Apply);
                let position = applied.map(|one| one.event.position);
                steps.push(Step { stream_id, from, to, position });
            }
            gaps.extend(gap);
        }
        Self { events: planned, steps, gaps }
    }

    /// The events to apply. Those of one stream are in the order of their versions.
    pub fn due(&self) -> Vec<Slot> {
        (0..self.events.len()).map(Slot).filter(|slot| self.is_due(*slot)).collect()
    }

    /// Whether an event has the verdict [`Verdict::Apply`].
    pub fn is_due(&self, slot: Slot) -> bool {
        self.events[slot.0].verdict == Verdict::Apply
    }

    /// The event at a place.
    pub fn event(&self, slot: Slot) -> &'e StoredEvent {
        self.events[slot.0].event
    }

    /// Every event with its verdict. Those of one stream are in the order of their versions.
    pub fn verdicts(&self) -> impl Iterator<Item = (&'e StoredEvent, Verdict)> {
        self.events.iter().map(|planned| (planned.event, planned.verdict))
    }

    /// The verdicts in the order of the events that were passed to [`Plan::of`].
    pub fn into_verdicts(mut self) -> Vec<Verdict> {
        self.events.sort_by_key(|planned| planned.index);
        self.events.into_iter().map(|planned| planned.verdict).collect()
    }

    /// Changes the verdict on an event that cannot be applied to [`Verdict::Refused`], and that on the
    /// later events of its stream to [`Verdict::Parked`].
    pub fn refuse(&mut self, refused: Slot) {
        let StoredEvent { stream_id, version, .. } = self.event(refused);
        let (mut last, mut position) = (None, None);
        for (index, planned) in self.events.iter_mut().enumerate() {
            if planned.event.stream_id != *stream_id {
                continue;
            }
            if index == refused.0 {
                planned.verdict = Verdict::Refused;
            } else if planned.event.version >= *version {
                // An event with the same version is either a copy of the refused one or in conflict with
                // it.
                planned.verdict = Verdict::Parked;
            } else if planned.verdict == Verdict::Apply {
                let StoredEvent { version, event_id, .. } = *planned.event;
                last = Some(Last { version, event_id });
                position = Some(planned.event.position);
            }
        }
        self.gaps.retain(|gap| gap.stream_id != *stream_id);
        if let Some(step) = self.steps.iter_mut().find(|step| step.stream_id == stream_id) {
            step.to = Head { last: last.or(step.from.last), is_parked: true };
            step.position = position;
        }
    }
}

/// What the event store has at the versions of a repeated event and of the last applied event of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The event with the version of the repeated one; `None` if it was deleted.
    pub received: Option<EventId>,
    /// The event with the version of the last applied one.
    pub last: Option<EventId>,
}

/// Why an event that counted as a duplicate is in conflict with its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    /// The event store has another event with its version. Another program than the relay has published it.
    OtherEvent {
        /// The event in the event store.
        stored: EventId,
    },
    /// The event store has the event, but not the last applied one: the stream was deleted and appended again.
    OtherHistory,
}

/// Decides whether an event that counted as a duplicate contradicts its stream. The bookkeeping has the id of
/// the last applied event only, so the event store answers for the versions before.
pub fn contradiction(received: Last, last: Last, stored: Stored) -> Option<Contradiction> {
    // Without it, the event was deleted, and nothing is left to compare with.
    let stored_event = stored.received?;
    if stored_event != received.event_id {
        Some(Contradiction::OtherEvent { stored: stored_event })
    } else if stored.last != Some(last.event_id) {
        Some(Contradiction::OtherHistory)
    } else {
        None
    }
}

/// Decides the verdicts on the events of one stream, which must be sorted by version. Returns where the
/// stream stands afterwards, and the range of missing versions.
fn decide(from: Head, stream: &mut [Planned<'_>]) -> (Head, Option<StreamRange>) {
    let mut head = from;
    let mut missing_to = None;
    for planned in stream.iter_mut() {
        let StoredEvent { version, event_id, .. } = *planned.event;
        let next = head.next();
        planned.verdict = match head.last {
            _ if version == next && !head.is_parked => {
                head.last = Some(Last { version, event_id });
                Verdict::Apply
            }
            Some(last) if version == last.version && event_id != last.event_id => {
                head.is_parked = true;
                Verdict::Conflict { applied: last.event_id }
            }
            _ if version < next => Verdict::Duplicate,
            _ if head.is_parked => Verdict::Parked,
            _ => {
                missing_to = StreamVersion::new(version.get() - 1).ok();
                Verdict::Gap
            }
        };
    }
    let stream_id = stream[0].event.stream_id.clone();
    let gap = missing_to.map(|to| StreamRange { stream_id, from: head.next(), to });
    (head, gap)
}

#[cfg(test)]
mod tests;
