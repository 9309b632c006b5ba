//! What to do with events, given what was applied before. Pure: no clock, no database.
//!
//! Deliveries come in any order, more than once, or not at all. Within a stream, versions decide:
//! the next one is applied, an old one is a duplicate, one too many shows a gap. An event without a
//! version is applied unless its id was seen.

use std::collections::{HashMap, HashSet};

use domain_events::{Event, EventId, StreamId, StreamVersion};
use event_store::Wanted;

/// The last event that was applied of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Last {
    /// Its version.
    pub(crate) version: StreamVersion,
    /// Its id.
    pub(crate) event_id: EventId,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Head {
    /// The last event that was applied; `None` before the first.
    pub(crate) last: Option<Last>,
    /// Whether the next event could not be applied, and waits for a person.
    pub(crate) is_parked: bool,
}

/// What was applied before.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Each stream that was seen before.
    pub(crate) heads: HashMap<StreamId, Head>,
    /// The events without a version, of those in question.
    pub(crate) seen: HashSet<EventId>,
}

/// What to do with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its turn has come.
    Apply,
    /// It was applied before.
    Duplicate,
    /// Another event with this version was applied: two stores, or one that lost commits. Its stream
    /// is parked.
    Conflict {
        /// The event that was applied.
        applied: EventId,
    },
    /// Events before it are missing.
    Gap,
    /// It cannot be applied: its stream is parked, or it has none and is a dead letter.
    Refused,
    /// Its stream is parked: it is in the event store, and read again when the stream goes on.
    Parked,
}

/// What to do with a set of events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan<'e> {
    /// For each event, in the order given.
    pub(crate) verdicts: Vec<Verdict>,
    /// The events to apply: by stream, and in each stream by version; then those without a version,
    /// in the order given.
    pub(crate) apply: Vec<usize>,
    /// The streams that will stand elsewhere, in the order of their names.
    pub(crate) steps: Vec<Step<'e>>,
    /// The versions that are missing.
    pub(crate) gaps: Vec<Wanted>,
}

/// A step of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step<'e> {
    /// The stream.
    pub(crate) stream_id: &'e StreamId,
    /// Where it stands.
    pub(crate) from: Head,
    /// Where it will stand.
    pub(crate) to: Head,
}

/// Decides what to do with events.
pub(crate) fn plan<'e>(known: &Known, events: &[&'e Event]) -> Plan<'e> {
    let mut plan = Plan {
        verdicts: vec![Verdict::Duplicate; events.len()],
        apply: Vec::new(),
        steps: Vec::new(),
        gaps: Vec::new(),
    };
    let placed = |index: &usize| events[*index].place().map(|place| (place, *index));
    let mut order: Vec<_> = (0..events.len()).filter_map(|index| placed(&index)).collect();
    // By index too: of two events with one version, the one that came first is applied.
    order.sort_unstable();
    for stream in order.chunk_by(|((a, _), _), ((b, _), _)| a == b) {
        plan.stream(known, stream, events);
    }
    let mut seen = known.seen.clone();
    for index in (0..events.len()).filter(|index| events[*index].place().is_none()) {
        if seen.insert(events[index].event_id) {
            plan.verdicts[index] = Verdict::Apply;
            plan.apply.push(index);
        }
    }
    plan
}

/// An event with its place in its stream, and its place in the batch.
type Placed<'e> = ((&'e StreamId, StreamVersion), usize);

impl<'e> Plan<'e> {
    /// Decides for the events of one stream, sorted by version.
    fn stream(&mut self, known: &Known, stream: &[Placed<'e>], events: &[&'e Event]) {
        let ((stream_id, _), _) = stream[0];
        let from = known.heads.get(stream_id).copied().unwrap_or_default();
        let mut head = from;
        let mut missing_to = None;
        for ((_, version), index) in stream {
            let event_id = events[*index].event_id;
            let next = head.last.map_or(StreamVersion::FIRST, |last| last.version.next());
            self.verdicts[*index] = match head.last {
                _ if *version == next && !head.is_parked => {
                    head.last = Some(Last { version: *version, event_id });
                    self.apply.push(*index);
                    Verdict::Apply
                }
                Some(last) if *version == last.version && event_id != last.event_id => {
                    head.is_parked = true;
                    Verdict::Conflict { applied: last.event_id }
                }
                _ if *version < next => Verdict::Duplicate,
                _ if head.is_parked => Verdict::Parked,
                _ => {
                    missing_to = StreamVersion::new(version.get() - 1).ok();
                    Verdict::Gap
                }
            };
        }
        if head != from {
            self.steps.push(Step { stream_id, from, to: head });
        }
        if let Some(to) = missing_to {
            let from = head.last.map_or(StreamVersion::FIRST, |last| last.version.next());
            self.gaps.push(Wanted { stream_id: stream_id.clone(), from, to });
        }
    }

    /// Takes back an event that turned out not to be applicable, and what follows it in its stream:
    /// the stream is parked before it.
    pub(crate) fn refuse(&mut self, refused: usize, events: &[&'e Event]) {
        self.verdicts[refused] = Verdict::Refused;
        self.apply.retain(|index| *index != refused);
        let Some((stream_id, version)) = events[refused].place() else { return };
        let later = |index: usize| {
            events[index].place().is_some_and(|(of, at)| of == stream_id && at > version)
        };
        for (index, event) in events.iter().enumerate() {
            // One that came again with the same version is the same event, or in conflict with it.
            let again = index != refused && event.place() == Some((stream_id, version));
            if later(index) || again {
                self.verdicts[index] = Verdict::Parked;
            }
        }
        self.apply.retain(|index| !later(*index));
        self.gaps.retain(|gap| gap.stream_id != *stream_id);
        let before =
            self.apply.iter().rev().find(|index| events[**index].stream_id() == Some(stream_id));
        let last = before.and_then(|index| {
            let (_, version) = events[*index].place()?;
            Some(Last { version, event_id: events[*index].event_id })
        });
        if let Some(step) = self.steps.iter_mut().find(|step| step.stream_id == stream_id) {
            step.to = Head { last: last.or(step.from.last), is_parked: true };
        }
    }
}

#[cfg(test)]
mod tests;
