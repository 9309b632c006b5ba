use chrono::{TimeZone, Utc};
use domain_events::{Event, EventType, Json, Origin, SchemaVersion};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// Event `version` of stream `stream`; `fork` makes another event with the same version.
fn event(stream: u8, version: i64, fork: bool) -> StreamEvent {
    let stream_id = StreamId::new(format!("order-{stream}")).unwrap();
    let number = StreamVersion::new(version).unwrap();
    let id = u128::from(stream) << 64 | u128::from(version.unsigned_abs()) << 1 | u128::from(fork);
    StreamEvent {
        stream_id: stream_id.clone(),
        version: number,
        event: Event {
            event_id: EventId::new(Uuid::from_u128(id)).unwrap(),
            event_type: EventType::new("OrderPlaced").unwrap(),
            schema_version: SchemaVersion::FIRST,
            origin: Origin::Stream { stream_id, version: number, position: None },
            data: Json::empty_object(),
            metadata: Json::empty_object(),
            occurred_at: Utc.timestamp_micros(0).unwrap(),
            recorded_at: Utc.timestamp_micros(0).unwrap(),
        },
    }
}

fn head(stream: u8, version: i64) -> (StreamId, Head) {
    let last = event(stream, version, false);
    (last.stream_id, Head { version: last.version, event_id: last.event.event_id })
}

#[test]
fn each_case_has_its_verdict() {
    let heads = HashMap::from([head(1, 5)]);
    let other = event(1, 5, true);
    let applied = event(1, 5, false).event.event_id;
    for (event, verdict) in [
        (event(1, 6, false), Verdict::Apply),
        (event(1, 5, false), Verdict::Duplicate),
        (event(1, 2, false), Verdict::Duplicate),
        (other, Verdict::Conflict { applied }),
        (event(1, 7, false), Verdict::Gap),
        (event(2, 1, false), Verdict::Apply),
        (event(2, 2, false), Verdict::Gap),
    ] {
        assert_eq!(plan(&heads, &[&event]).verdicts, [verdict], "{event:?}");
    }
}

#[test]
fn a_gap_names_what_is_missing() {
    let heads = HashMap::from([head(1, 3)]);
    let events = [event(1, 9, false), event(1, 4, false), event(1, 7, false)];
    let plan = plan(&heads, &events.iter().collect::<Vec<_>>());
    assert_eq!(plan.verdicts, [Verdict::Gap, Verdict::Apply, Verdict::Gap]);
    let version = |n| StreamVersion::new(n).unwrap();
    let wanted = Wanted { stream_id: head(1, 1).0, from: version(5), to: version(8) };
    assert_eq!(plan.gaps, [wanted]);
}

#[test]
fn of_two_events_with_one_version_the_first_to_come_wins() {
    let events = [event(1, 1, true), event(1, 2, false), event(1, 1, false)];
    let plan = plan(&HashMap::new(), &events.iter().collect::<Vec<_>>());
    let applied = events[0].event.event_id;
    assert_eq!(plan.verdicts, [Verdict::Apply, Verdict::Apply, Verdict::Conflict { applied }]);
}

const STREAMS: u8 = 4;
const LENGTH: i64 = 12;

/// The world that a plan changes: what was applied of each stream, in order.
#[derive(Default)]
struct ReadModel {
    applied: HashMap<StreamId, Vec<i64>>,
    heads: HashMap<StreamId, Head>,
}

impl ReadModel {
    /// Applies a batch; when `crash` is set, its transaction is rolled back.
    fn take(&mut self, batch: &[StreamEvent], crash: bool) -> Vec<Wanted> {
        let events: Vec<_> = batch.iter().collect();
        let plan = plan(&self.heads, &events);
        if crash {
            return Vec::new();
        }
        for event in &plan.apply {
            let versions = self.applied.entry(event.stream_id.clone()).or_default();
            versions.push(event.version.get());
        }
        for step in &plan.moves {
            let before = self.heads.insert(step.stream_id.clone(), step.to);
            assert_eq!(before.map_or(0, |head| head.version.get()), step.from);
        }
        plan.gaps
    }

    /// Reads what is missing from the event store and applies it.
    fn heal(&mut self, gaps: &[Wanted], batch: &[StreamEvent]) {
        let missing = gaps.iter().flat_map(|gap| {
            let stream: u8 = gap.stream_id.as_str()["order-".len()..].parse().unwrap();
            (gap.from.get()..=gap.to.get()).map(move |version| event(stream, version, false))
        });
        let healed: Vec<_> = missing.chain(batch.iter().cloned()).collect();
        assert!(self.take(&healed, false).is_empty(), "a healed gap is closed");
    }
}

/// Deliveries of a history: shuffled, some several times, some never, cut into batches, some of
/// which crash and come again.
fn deliveries() -> impl Strategy<Value = Vec<(Vec<StreamEvent>, bool)>> {
    let all = (0..STREAMS).flat_map(|stream| (1..=LENGTH).map(move |version| (stream, version)));
    let copies = proptest::collection::vec(0_usize..4, all.clone().count());
    copies
        .prop_map(move |copies| {
            let events = all.clone().zip(copies);
            events
                .flat_map(|((stream, version), n)| {
                    std::iter::repeat_n(event(stream, version, false), n)
                })
                .collect::<Vec<_>>()
        })
        .prop_shuffle()
        .prop_flat_map(|events| {
            let batches = 1..=events.len().max(1);
            (Just(events), proptest::collection::vec((batches, any::<bool>()), 1..12))
        })
        .prop_map(|(mut events, cuts)| {
            let mut batches = Vec::new();
            for (length, crash) in cuts {
                let rest = events.split_off(length.min(events.len()));
                let batch = std::mem::replace(&mut events, rest);
                batches.push((batch.clone(), crash));
                if crash {
                    batches.push((batch, false));
                }
            }
            batches.push((events, false));
            batches
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// Whatever the queue does, each stream is applied from 1 on without a gap or a repetition.
    #[test]
    fn the_read_model_is_a_sequential_fold(batches in deliveries()) {
        let mut model = ReadModel::default();
        let mut seen: HashMap<StreamId, i64> = HashMap::new();
        for (batch, crash) in &batches {
            for event in batch {
                let highest = seen.entry(event.stream_id.clone()).or_default();
                *highest = event.version.get().max(*highest);
            }
            let gaps = model.take(batch, *crash);
            if !crash {
                model.heal(&gaps, batch);
            }
        }
        for (stream_id, highest) in seen {
            prop_assert_eq!(&model.applied[&stream_id], &(1..=highest).collect::<Vec<_>>());
        }
    }

    /// Without healing, what follows a gap waits, and nothing is applied out of turn.
    #[test]
    fn nothing_passes_a_gap(batches in deliveries()) {
        let mut model = ReadModel::default();
        for (batch, crash) in &batches {
            model.take(batch, *crash);
        }
        for versions in model.applied.values() {
            prop_assert!(versions.iter().copied().eq((1..).take(versions.len())));
        }
    }
}
