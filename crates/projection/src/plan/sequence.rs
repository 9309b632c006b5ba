//! What to do with events, given what was applied before. Pure: no clock, no database.
//!
//! Deliveries come in any order, more than once, or not at all. Within a stream, versions decide:
//! the next one is applied, an old one is a duplicate, and one too high shows a gap.

use std::collections::HashMap;

use domain_events::{EventId, StoredEvent, StreamId, StreamRange, StreamVersion};

/// The last event of a stream that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    /// Its version.
    pub version: StreamVersion,
    /// Its id.
    pub event_id: EventId,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The last event that was applied; `None` before the first.
    pub last: Option<Last>,
    /// Whether the next event could not be applied, and waits for a person.
    pub is_parked: bool,
}

impl Head {
    /// The version that is applied next.
    pub fn next(self) -> StreamVersion {
        self.last.map_or(StreamVersion::FIRST, |last| last.version.next())
    }
}

/// Where each stream stands that was seen before.
pub type Heads = HashMap<StreamId, Head>;

/// What to do with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its turn has come.
    Apply,
    /// It was applied before.
    Duplicate,
    /// Another event with this version was applied: there are two event stores, or one lost commits.
    /// The stream is parked.
    Conflict {
        /// The event that was applied.
        applied: EventId,
    },
    /// Events before it are missing.
    Gap,
    /// It cannot be applied; its stream is parked.
    Refused,
    /// Its stream is parked. It stays in the event store, and is read there when the stream goes on.
    Parked,
}

/// The place of an event in its [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(usize);

/// An event with what to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned<'e> {
    event: &'e StoredEvent,
    verdict: Verdict,
    /// Its place among the events as they were given.
    given: usize,
}

/// What to do with a batch of events.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan<'e> {
    /// By stream, in each stream by version, and of one version in the order given.
    events: Vec<Planned<'e>>,
    /// The streams whose bookkeeping moves, in the order of their names.
    pub steps: Vec<Step<'e>>,
    /// The versions that are missing.
    pub gaps: Vec<StreamRange>,
}

/// How the bookkeeping of one stream moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'e> {
    /// The stream.
    pub stream_id: &'e StreamId,
    /// Where it stands.
    pub from: Head,
    /// Where it will stand.
    pub to: Head,
}

impl<'e> Plan<'e> {
    /// Decides what to do with events. Of two events with one version, the first one given is applied.
    pub fn of(heads: &Heads, events: &[&'e StoredEvent]) -> Self {
        let planned = |(given, event): (usize, &&'e StoredEvent)| {
            // Overwritten below.
            Planned { event, verdict: Verdict::Duplicate, given }
        };
        let mut planned: Vec<_> = events.iter().enumerate().map(planned).collect();
        planned.sort_by_key(|one| (&one.event.stream_id, one.event.version, one.given));
        let (mut steps, mut gaps) = (Vec::new(), Vec::new());
        for stream in planned.chunk_by_mut(|a, b| a.event.stream_id == b.event.stream_id) {
            let stream_id = &stream[0].event.stream_id;
            let from = heads.get(stream_id).copied().unwrap_or_default();
            let (to, gap) = decide(from, stream);
            if to != from {
                steps.push(Step { stream_id, from, to });
            }
            gaps.extend(gap);
        }
        Self { events: planned, steps, gaps }
    }

    /// The events to apply, each stream in order.
    pub fn due(&self) -> Vec<Slot> {
        (0..self.events.len()).map(Slot).filter(|slot| self.is_due(*slot)).collect()
    }

    /// Whether an event is still to be applied.
    pub fn is_due(&self, slot: Slot) -> bool {
        self.events[slot.0].verdict == Verdict::Apply
    }

    /// The event at a place.
    pub fn event(&self, slot: Slot) -> &'e StoredEvent {
        self.events[slot.0].event
    }

    /// Every event with its verdict, each stream in order.
    pub fn verdicts(&self) -> impl Iterator<Item = (&'e StoredEvent, Verdict)> {
        self.events.iter().map(|planned| (planned.event, planned.verdict))
    }

    /// The verdicts in the order in which the events were given.
    pub fn into_verdicts(mut self) -> Vec<Verdict> {
        self.events.sort_by_key(|planned| planned.given);
        self.events.into_iter().map(|planned| planned.verdict).collect()
    }

    /// Takes back an event that turned out not to be applicable, and those that follow it in its stream:
    /// the stream is parked before it.
    pub fn refuse(&mut self, refused: Slot) {
        let StoredEvent { stream_id, version, .. } = self.event(refused);
        let mut last = None;
        for (index, planned) in self.events.iter_mut().enumerate() {
            if planned.event.stream_id != *stream_id {
                continue;
            }
            if index == refused.0 {
                planned.verdict = Verdict::Refused;
            } else if planned.event.version >= *version {
                // One with the same version is the same event again, or in conflict with it.
                planned.verdict = Verdict::Parked;
            } else if planned.verdict == Verdict::Apply {
                let StoredEvent { version, event_id, .. } = *planned.event;
                last = Some(Last { version, event_id });
            }
        }
        self.gaps.retain(|gap| gap.stream_id != *stream_id);
        if let Some(step) = self.steps.iter_mut().find(|step| step.stream_id == stream_id) {
            step.to = Head { last: last.or(step.from.last), is_parked: true };
        }
    }
}

/// Decides for the events of one stream, sorted by version. Gives where the stream will stand, and what
/// is missing.
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
