use chrono::{TimeZone, Utc};
use domain_events::{EventType, Json, Origin, SchemaVersion};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// Event `version` of stream `stream`; `fork` makes another event with the same version.
fn event(stream: u8, version: i64, fork: bool) -> Event {
    let stream_id = StreamId::new(format!("order-{stream}")).unwrap();
    let version = StreamVersion::new(version).unwrap();
    let number = version.get().unsigned_abs();
    let id = u128::from(stream) << 64 | u128::from(number) << 1 | u128::from(fork);
    with_origin(id, Origin::Stream { stream_id, version, position: None })
}

fn unversioned(number: u8) -> Event {
    with_origin(u128::from(number) << 96 | 1, Origin::Unversioned { stream_id: None })
}

fn with_origin(id: u128, origin: Origin) -> Event {
    Event {
        event_id: EventId::new(Uuid::from_u128(id)).unwrap(),
        event_type: EventType::new("OrderPlaced").unwrap(),
        schema_version: SchemaVersion::FIRST,
        origin,
        data: Json::empty_object(),
        metadata: Json::empty_object(),
        occurred_at: Utc.timestamp_micros(0).unwrap(),
        recorded_at: Utc.timestamp_micros(0).unwrap(),
    }
}

fn known(stream: u8, version: i64, is_parked: bool) -> Known {
    let last = event(stream, version, false);
    let (stream_id, version) = last.place().unwrap();
    let last_event = Last { version, event_id: last.event_id };
    let head = Head { last: Some(last_event), is_parked };
    Known { heads: HashMap::from([(stream_id.clone(), head)]), seen: HashSet::new() }
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
        (unversioned(1), Verdict::Apply, Verdict::Apply),
    ] {
        assert_eq!(plan(&known(1, 5, false), &[&event]).verdicts, [verdict], "{event:?}");
        assert_eq!(plan(&known(1, 5, true), &[&event]).verdicts, [parked], "parked: {event:?}");
    }
}

#[test]
fn an_event_without_a_version_is_applied_once() {
    let (one, two) = (unversioned(1), unversioned(2));
    let known = Known { seen: HashSet::from([two.event_id]), ..Known::default() };
    let plan = plan(&known, &[&one, &two, &one]);
    assert_eq!(plan.verdicts, [Verdict::Apply, Verdict::Duplicate, Verdict::Duplicate]);
    assert_eq!(plan.apply, [0]);
}

#[test]
fn a_gap_names_what_is_missing() {
    let events = [event(1, 9, false), event(1, 4, false), event(1, 7, false)];
    let plan = plan(&known(1, 3, false), &events.iter().collect::<Vec<_>>());
    assert_eq!(plan.verdicts, [Verdict::Gap, Verdict::Apply, Verdict::Gap]);
    let version = |n| StreamVersion::new(n).unwrap();
    let stream_id = StreamId::new("order-1").unwrap();
    assert_eq!(plan.gaps, [Wanted { stream_id, from: version(5), to: version(8) }]);
}

#[test]
fn a_conflict_parks_what_follows() {
    let events = [event(1, 1, true), event(1, 2, false), event(1, 1, false)];
    let plan = plan(&Known::default(), &events.iter().collect::<Vec<_>>());
    let applied = events[0].event_id;
    let conflict = Verdict::Conflict { applied };
    assert_eq!(plan.verdicts, [Verdict::Apply, Verdict::Parked, conflict]);
    assert!(plan.steps[0].to.is_parked);
}

#[test]
fn what_follows_a_refused_event_waits_for_it() {
    let events = [event(1, 3, false), event(1, 1, false), event(1, 2, false), event(2, 1, false)];
    let events: Vec<_> = events.iter().collect();
    let mut plan = plan(&Known::default(), &events);
    plan.refuse(2, &events);
    let verdicts = [Verdict::Parked, Verdict::Apply, Verdict::Refused, Verdict::Apply];
    assert_eq!(plan.verdicts, verdicts);
    assert_eq!(plan.apply, [1, 3]);
    let last = Last { version: StreamVersion::FIRST, event_id: events[1].event_id };
    assert_eq!(plan.steps[0].to, Head { last: Some(last), is_parked: true });
}

const STREAMS: u8 = 3;
const LENGTH: i64 = 6;
const UNVERSIONED: u8 = 3;

/// The database: what was applied of each stream, in order.
#[derive(Default)]
struct Database {
    applied: HashMap<StreamId, Vec<i64>>,
    known: Known,
    once: Vec<EventId>,
}

/// Events that no handler can apply.
type Poison = HashSet<EventId>;

/// A batch that was planned, by a consumer that read the bookkeeping then.
struct Planned {
    batch: Vec<Event>,
    heads: HashMap<StreamId, Head>,
    verdicts: Vec<Verdict>,
    apply: Vec<usize>,
    steps: Vec<(StreamId, Head)>,
    gaps: Vec<Wanted>,
}

fn planned(database: &Database, batch: Vec<Event>, poison: &Poison) -> Planned {
    let events: Vec<_> = batch.iter().collect();
    let mut plan = plan(&database.known, &events);
    for index in plan.apply.clone() {
        if plan.verdicts[index] == Verdict::Apply && poison.contains(&batch[index].event_id) {
            plan.refuse(index, &events);
        }
    }
    let steps = plan.steps.iter().map(|step| (step.stream_id.clone(), step.to)).collect();
    let Plan { verdicts, apply, gaps, .. } = plan;
    Planned { heads: database.known.heads.clone(), verdicts, apply, steps, gaps, batch }
}

impl Database {
    /// Commits, unless another consumer moved one of the streams meanwhile. Says whether it did.
    fn commit(&mut self, planned: &Planned) -> bool {
        let moved = |(stream_id, _): &(StreamId, Head)| {
            self.known.heads.get(stream_id) != planned.heads.get(stream_id)
        };
        let applied: Vec<&Event> =
            planned.apply.iter().map(|index| &planned.batch[*index]).collect();
        let seen =
            |event: &&Event| event.place().is_none() && self.known.seen.contains(&event.event_id);
        if planned.steps.iter().any(moved) || applied.iter().any(seen) {
            return false;
        }
        for event in applied {
            if let Some((stream_id, version)) = event.place() {
                self.applied.entry(stream_id.clone()).or_default().push(version.get());
            } else {
                self.known.seen.insert(event.event_id);
                self.once.push(event.event_id);
            }
        }
        self.known.heads.extend(planned.steps.iter().cloned());
        true
    }
}

/// What a consumer does next.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// Takes so many deliveries and plans them.
    Take(usize),
    /// Commits what it planned.
    Commit,
    /// Loses it.
    Crash,
}

/// Deliveries of a history: shuffled, some several times, some never.
fn deliveries() -> impl Strategy<Value = Vec<Event>> {
    let streams =
        (0..STREAMS).flat_map(|stream| (1..=LENGTH).map(move |at| event(stream, at, false)));
    let all: Vec<Event> = streams.chain((0..UNVERSIONED).map(unversioned)).collect();
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

fn missing(gaps: &[Wanted]) -> Vec<Event> {
    let part = |gap: &Wanted| {
        let stream: u8 = gap.stream_id.as_str()["order-".len()..].parse().unwrap();
        (gap.from.get()..=gap.to.get()).map(move |version| event(stream, version, false))
    };
    gaps.iter().flat_map(part).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 110_000, ..ProptestConfig::default() })]

    /// Whatever the queue does, whoever crashes when, and whatever two consumers do at the same time:
    /// each stream is applied from 1 on without a gap or a repetition, up to its first event that
    /// cannot be applied, and each event without a version once.
    #[test]
    fn the_read_model_is_a_sequential_fold(
        events in deliveries(), steps in steps(),
        poisoned in proptest::option::of((0..STREAMS, 1..=LENGTH)),
    ) {
        let poison: Poison = poisoned.iter().map(|(at, version)| event(*at, *version, false).event_id).collect();
        let mut database = Database::default();
        let mut queue: Vec<Event> = events.iter().rev().cloned().collect();
        let mut consumers: [Option<Planned>; 2] = [None, None];
        let ends = [(0, Action::Commit), (1, Action::Commit)];
        for (consumer, step) in steps.into_iter().chain(ends) {
            let taken = consumers[consumer].take();
            match (step, taken) {
                (Action::Take(count), None) => {
                    let rest = queue.split_off(queue.len().saturating_sub(count));
                    consumers[consumer] = Some(planned(&database, rest, &poison));
                }
                (Action::Commit, Some(plan)) if database.commit(&plan) => {
                    // What is behind a gap comes again, with what is missing.
                    let gaps = plan.batch.iter().zip(&plan.verdicts).filter(|it| *it.1 == Verdict::Gap);
                    queue.extend(gaps.map(|(event, _)| event.clone()));
                    queue.extend(missing(&plan.gaps));
                }
                (Action::Take(_), Some(plan)) => consumers[consumer] = Some(plan),
                (_, Some(plan)) => queue.extend(plan.batch),
                (_, None) => {}
            }
        }
        // The rest, in one go; then what was missing for it.
        while !queue.is_empty() {
            let plan = planned(&database, std::mem::take(&mut queue), &poison);
            prop_assert!(database.commit(&plan));
            let gaps = plan.batch.iter().zip(&plan.verdicts).filter(|it| *it.1 == Verdict::Gap);
            queue.extend(gaps.map(|(event, _)| event.clone()));
            queue.extend(missing(&plan.gaps));
        }
        let mut highest: HashMap<StreamId, i64> = HashMap::new();
        let mut once: HashSet<EventId> = HashSet::new();
        for event in &events {
            match event.place() {
                Some((stream_id, version)) => {
                    let highest = highest.entry(stream_id.clone()).or_default();
                    *highest = version.get().max(*highest);
                }
                None => drop(once.insert(event.event_id)),
            }
        }
        for (stream_id, highest) in highest {
            let stop = poisoned.filter(|(stream, _)| stream_id.as_str() == format!("order-{stream}"));
            let end = stop.map_or(highest, |(_, version)| highest.min(version - 1));
            let applied = database.applied.remove(&stream_id).unwrap_or_default();
            prop_assert_eq!(applied, (1..=end).collect::<Vec<_>>());
            let parked = stop.is_some_and(|(_, version)| version <= highest);
            prop_assert_eq!(database.known.heads[&stream_id].is_parked, parked);
        }
        prop_assert!(database.applied.is_empty());
        let times = database.once.len();
        prop_assert_eq!(times, once.len());
        prop_assert_eq!(database.once.into_iter().collect::<HashSet<_>>(), once);
    }
}
