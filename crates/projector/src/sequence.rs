//! What to do with events, given where their streams stand. Pure: no clock, no database.
//!
//! Deliveries come in any order, more than once, or not at all. Within a stream, versions decide:
//! the next one is applied, an old one is a duplicate, one too many shows a gap.

use std::collections::HashMap;

use domain_events::{EventId, StreamId, StreamVersion};
use event_store::Wanted;

use crate::stream_event::StreamEvent;

/// The last event that was applied of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its version.
    pub(crate) version: StreamVersion,
    /// Its id.
    pub(crate) event_id: EventId,
}

/// What to do with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its turn has come.
    Apply,
    /// It was applied before.
    Duplicate,
    /// Another event with this version was applied: two stores, or one that lost commits.
    Conflict {
        /// The event that was applied.
        applied: EventId,
    },
    /// Events before it are missing.
    Gap,
}

/// What to do with a set of events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan<'e> {
    /// For each event, in the order given.
    pub(crate) verdicts: Vec<Verdict>,
    /// The events to apply: by stream, and in each stream by version.
    pub(crate) apply: Vec<&'e StreamEvent>,
    /// Where the streams with events to apply will stand.
    pub(crate) moves: Vec<Move<'e>>,
    /// The versions that are missing.
    pub(crate) gaps: Vec<Wanted>,
}

/// A step of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move<'e> {
    /// The stream.
    pub(crate) stream_id: &'e StreamId,
    /// Where it stands; 0 before its first event.
    pub(crate) from: i64,
    /// Where it will stand.
    pub(crate) to: Head,
}

/// Decides what to do with events; `heads` has each stream that has been seen before.
pub(crate) fn plan<'e>(heads: &HashMap<StreamId, Head>, events: &[&'e StreamEvent]) -> Plan<'e> {
    let mut order: Vec<usize> = (0..events.len()).collect();
    // Stable: of two events with one version, the one that came first is applied.
    order.sort_by_key(|index| (&events[*index].stream_id, events[*index].version));
    let mut plan = Plan {
        verdicts: vec![Verdict::Gap; events.len()],
        apply: Vec::new(),
        moves: Vec::new(),
        gaps: Vec::new(),
    };
    for stream in order.chunk_by(|a, b| events[*a].stream_id == events[*b].stream_id) {
        let stream_id = &events[stream[0]].stream_id;
        plan.stream(heads.get(stream_id).copied(), stream, events);
    }
    plan
}

impl<'e> Plan<'e> {
    /// Decides for the events of one stream, sorted by version.
    fn stream(&mut self, known: Option<Head>, stream: &[usize], events: &[&'e StreamEvent]) {
        let stream_id = &events[stream[0]].stream_id;
        let mut head = known;
        let mut missing_to = None;
        for index in stream {
            let event = events[*index];
            let next = head.map_or(StreamVersion::FIRST, |head| head.version.next());
            self.verdicts[*index] = match head {
                _ if event.version == next => {
                    head = Some(Head { version: event.version, event_id: event.event.event_id });
                    self.apply.push(event);
                    Verdict::Apply
                }
                Some(head)
                    if event.version == head.version && event.event.event_id != head.event_id =>
                {
                    Verdict::Conflict { applied: head.event_id }
                }
                _ if event.version < next => Verdict::Duplicate,
                _ => {
                    missing_to = StreamVersion::new(event.version.get() - 1).ok();
                    Verdict::Gap
                }
            };
        }
        if let Some(to) = head
            && head != known
        {
            let from = known.map_or(0, |head| head.version.get());
            self.moves.push(Move { stream_id, from, to });
        }
        if let Some(to) = missing_to {
            let from = head.map_or(StreamVersion::FIRST, |head| head.version.next());
            self.gaps.push(Wanted { stream_id: stream_id.clone(), from, to });
        }
    }
}

#[cfg(test)]
mod tests;
