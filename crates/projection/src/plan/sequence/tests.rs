use std::collections::HashSet;

use chrono::{TimeZone, Utc};
use domain_events::{EventType, Json, Position, SchemaVersion};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// Event `version` of stream `stream`. With `fork`, it is another event with the same version.
fn event(stream: u8, version: i64, fork: bool) -> StoredEvent {
    let stream_id = StreamId::new(format!("order-{stream}")).unwrap();
    let version = StreamVersion::new(version).unwrap();
    let number = version.get().unsigned_abs();
    let id = u128::from(stream) << 64 | u128::from(number) << 1 | u128::from(fork);
    StoredEvent {
        event_id: EventId::new(Uuid::from_u128(id)).unwrap(),
        event_type: EventType::new("OrderPlaced").unwrap(),
        schema_version: SchemaVersion::FIRST,
        stream_id,
        version,
        position: Position::START,
        data: Json::empty_object(),
        metadata: Json::empty_object(),
        occurred_at: Utc.timestamp_micros(0).unwrap(),
        recorded_at: Utc.timestamp_micros(0).unwrap(),
    }
}

/// The verdicts on events, in the order of the events.
fn verdicts(heads: &Heads, events: &[&StoredEvent]) -> Vec<Verdict> {
    Plan::of(heads, events).into_verdicts()
}

fn known(stream: u8, version: i64, is_parked: bool) -> Heads {
    let StoredEvent { stream_id, version, event_id, .. } = event(stream, version, false);
    Heads::from([(stream_id, Head { last: Some(Last { version, event_id }), is_parked })])
}

#[test]
fn each_case_has_its_verdict() {
    let applied = event(1, 5, false).event_id;
    for (event, verdict, parked) in [
        (event(1, 6, false), Verdict::Apply, Verdict::Parked),
        (event(1, 5, false), Verdict::Duplicate, Verdict::Duplicate),
        (event(1, 2, false), Verdict::Duplicate, Verdict::Duplicate),
        (event(1, 5, true), Verdict::Conflict { applied }, Verdict::Conflict { applied }),
        (event(1, 7, false), Verdict::Gap, Verdict::Parked),
        (event(2, 1, false), Verdict::Apply, Verdict::Apply),
        (event(2, 2, false), Verdict::Gap, Verdict::Gap),
    ] {
        assert_eq!(verdicts(&known(1, 5, false), &[&event]), [verdict], "{event:?}");
        assert_eq!(verdicts(&known(1, 5, true), &[&event]), [parked], "parked: {event:?}");
    }
}

#[test]
fn a_gap_lists_the_missing_versions() {
    let events = [event(1, 9, false), event(1, 4, false), event(1, 7, false)];
    let plan = Plan::of(&known(1, 3, false), &events.iter().collect::<Vec<_>>());
    let version = |n| StreamVersion::new(n).unwrap();
    let stream_id = StreamId::new("order-1").unwrap();
    assert_eq!(plan.gaps, [StreamRange { stream_id, from: version(5), to: version(8) }]);
    assert_eq!(plan.into_verdicts(), [Verdict::Gap, Verdict::Apply, Verdict::Gap]);
}

#[test]
fn a_conflict_parks_the_later_events() {
    let events = [event(1, 1, true), event(1, 2, false), event(1, 1, false)];
    let plan = Plan::of(&Heads::new(), &events.iter().collect::<Vec<_>>());
    assert!(plan.steps[0].to.is_parked);
    let conflict = Verdict::Conflict { applied: events[0].event_id };
    assert_eq!(plan.into_verdicts(), [Verdict::Apply, Verdict::Parked, conflict]);
}

#[test]
fn later_events_of_a_refused_one_are_parked() {
    let events = [event(1, 3, false), event(1, 1, false), event(1, 2, false), event(2, 1, false)];
    let events: Vec<_> = events.iter().collect();
    let mut plan = Plan::of(&Heads::new(), &events);
    let refused = plan.due().into_iter().find(|slot| plan.event(*slot) == events[2]).unwrap();
    plan.refuse(refused);
    let due: Vec<_> = plan.due().into_iter().map(|slot| plan.event(slot)).collect();
    assert_eq!(due, [events[1], events[3]]);
    let last = Last { version: StreamVersion::FIRST, event_id: events[1].event_id };
    assert_eq!(plan.steps[0].to, Head { last: Some(last), is_parked: true });
    let verdicts = [Verdict::Parked, Verdict::Apply, Verdict::Refused, Verdict::Apply];
    assert_eq!(plan.into_verdicts(), verdicts);
}

const STREAMS: u8 = 3;
const LENGTH: i64 = 6;

/// A model of the database: the applied versions of each stream, in order.
#[derive(Default)]
struct Database {
    applied: HashMap<StreamId, Vec<i64>>,
    heads: Heads,
}

/// Events that no handler can apply.
type Poison = HashSet<EventId>;

/// A planned batch of one consumer, with the bookkeeping that the consumer read.
struct Batch {
    events: Vec<StoredEvent>,
    heads: Heads,
    /// The stream and version of each event to apply.
    applies: Vec<(StreamId, i64)>,
    /// Events behind a gap.
    waiting: Vec<StoredEvent>,
    steps: Vec<(StreamId, Head)>,
    gaps: Vec<StreamRange>,
}

fn planned(database: &Database, batch: Vec<StoredEvent>, poison: &Poison) -> Batch {
    let events: Vec<_> = batch.iter().collect();
    let mut plan = Plan::of(&database.heads, &events);
    for slot in plan.due() {
        if plan.is_due(slot) && poison.contains(&plan.event(slot).event_id) {
            plan.refuse(slot);
        }
    }
    let due = plan.due().into_iter().map(|slot| plan.event(slot));
    let applies = due.map(|event| (event.stream_id.clone(), event.version.get())).collect();
    let gap = |(event, verdict): (&StoredEvent, Verdict)| {
        (verdict == Verdict::Gap).then(|| event.clone())
    };
    let waiting = plan.verdicts().filter_map(gap).collect();
    let steps = plan.steps.iter().map(|step| (step.stream_id.clone(), step.to)).collect();
    let gaps = plan.gaps;
    Batch { heads: database.heads.clone(), applies, waiting, steps, gaps, events: batch }
}

impl Database {
    /// Commits unless another consumer has changed the bookkeeping of one of the streams. Returns whether
    /// the batch was committed.
    fn commit(&mut self, batch: &Batch) -> bool {
        let moved = |(stream_id, _): &(StreamId, Head)| {
            self.heads.get(stream_id) != batch.heads.get(stream_id)
        };
        if batch.steps.iter().any(moved) {
            return false;
        }
        for (stream_id, version) in &batch.applies {
            self.applied.entry(stream_id.clone()).or_default().push(*version);
        }
        self.heads.extend(batch.steps.iter().cloned());
        true
    }
}

/// The next action of a consumer.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// Takes this number of deliveries and plans them.
    Take(usize),
    /// Commits its planned batch.
    Commit,
    /// Loses its planned batch.
    Crash,
}

/// The deliveries of a history: shuffled, some repeated, some missing.
fn deliveries() -> impl Strategy<Value = Vec<StoredEvent>> {
    let streams =
        (0..STREAMS).flat_map(|stream| (1..=LENGTH).map(move |at| event(stream, at, false)));
    let all: Vec<StoredEvent> = streams.collect();
    proptest::collection::vec(0_usize..4, all.len())
        .prop_map(move |copies| {
            let events = all.iter().zip(copies);
            events.flat_map(|(event, n)| std::iter::repeat_n(event.clone(), n)).collect::<Vec<_>>()
        })
        .prop_shuffle()
}

fn steps() -> impl Strategy<Value = Vec<(usize, Action)>> {
    let step = prop_oneof![
        3 => (1_usize..12).prop_map(Action::Take),
        3 => Just(Action::Commit),
        1 => Just(Action::Crash),
    ];
    proptest::collection::vec((0_usize..2, step), 1..24)
}

fn missing(gaps: &[StreamRange]) -> Vec<StoredEvent> {
    let part = |gap: &StreamRange| {
        let stream: u8 = gap.stream_id.as_str()["order-".len()..].parse().unwrap();
        (gap.from.get()..=gap.to.get()).map(move |version| event(stream, version, false))
    };
    gaps.iter().flat_map(part).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 110_000, ..ProptestConfig::default() })]

    /// Each stream is applied from version 1 without a gap or a repetition, up to its first event that
    /// cannot be applied. This holds for any order of deliveries, for any crash, and with two consumers at
    /// the same time.
    #[test]
    fn the_read_model_is_a_sequential_fold(
        events in deliveries(), steps in steps(),
        poisoned in proptest::option::of((0..STREAMS, 1..=LENGTH)),
    ) {
        let poison: Poison = poisoned.iter().map(|(at, version)| event(*at, *version, false).event_id).collect();
        let mut database = Database::default();
        let mut queue: Vec<StoredEvent> = events.iter().rev().cloned().collect();
        let mut consumers: [Option<Batch>; 2] = [None, None];
        let ends = [(0, Action::Commit), (1, Action::Commit)];
        for (consumer, step) in steps.into_iter().chain(ends) {
            let taken = consumers[consumer].take();
            match (step, taken) {
                (Action::Take(count), None) => {
                    let rest = queue.split_off(queue.len().saturating_sub(count));
                    consumers[consumer] = Some(planned(&database, rest, &poison));
                }
                (Action::Commit, Some(batch)) if database.commit(&batch) => {
                    // Events behind a gap are delivered again, together with the missing ones.
                    queue.extend(batch.waiting);
                    queue.extend(missing(&batch.gaps));
                }
                (Action::Take(_), Some(batch)) => consumers[consumer] = Some(batch),
                (_, Some(batch)) => queue.extend(batch.events),
                (_, None) => {}
            }
        }
        // Applies the rest of the queue, and then the events that were missing for it.
        while !queue.is_empty() {
            let batch = planned(&database, std::mem::take(&mut queue), &poison);
            prop_assert!(database.commit(&batch));
            queue.extend(batch.waiting);
            queue.extend(missing(&batch.gaps));
        }
        let mut highest: HashMap<StreamId, i64> = HashMap::new();
        for event in &events {
            let highest = highest.entry(event.stream_id.clone()).or_default();
            *highest = event.version.get().max(*highest);
        }
        for (stream_id, highest) in highest {
            let stop = poisoned.filter(|(stream, _)| stream_id.as_str() == format!("order-{stream}"));
            let end = stop.map_or(highest, |(_, version)| highest.min(version - 1));
            let applied = database.applied.remove(&stream_id).unwrap_or_default();
            prop_assert_eq!(applied, (1..=end).collect::<Vec<_>>());
            let parked = stop.is_some_and(|(_, version)| version <= highest);
            prop_assert_eq!(database.heads[&stream_id].is_parked, parked);
        }
        prop_assert!(database.applied.is_empty());
    }
}

/// A repetition of an applied event is harmless; another event, or another history, is a conflict.
#[test]
fn a_duplicate_that_the_event_store_does_not_have_is_a_conflict() {
    let id = |number: u128| EventId::new(Uuid::from_u128(number)).unwrap();
    let event = |version, number| Last {
        version: StreamVersion::new(version).unwrap(),
        event_id: id(number),
    };
    let (received, last) = (event(1, 1), event(3, 3));
    let decide = |received_id: Option<u128>, last_id: Option<u128>| {
        let stored = Stored { received: received_id.map(id), last: last_id.map(id) };
        contradiction(received, last, stored)
    };
    assert_eq!(decide(Some(1), Some(3)), None);
    assert_eq!(decide(None, None), None, "deleted events contradict nothing");
    assert_eq!(decide(Some(2), Some(3)), Some(Contradiction::OtherEvent { stored: id(2) }));
    assert_eq!(decide(Some(1), None), Some(Contradiction::OtherHistory));
    assert_eq!(decide(Some(1), Some(4)), Some(Contradiction::OtherHistory));
}
