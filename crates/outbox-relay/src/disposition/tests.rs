use proptest::prelude::*;

use super::*;

const POLICY: RetryPolicy =
    RetryPolicy { min: Duration::from_millis(100), max: Duration::from_secs(10) };

fn slot(id: i64, stream: u8, attempts: Option<u32>) -> Slot {
    Slot {
        id: OutboxId::from(id),
        lane: Lane::from(0),
        stream_key: format!("order-{stream}"),
        routing_key: "order.OrderPlaced".to_owned(),
        attempts,
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Confirmed),
        1 => Just(Fate::Returned),
        1 => Just(Fate::Nacked),
        1 => Just(Fate::TooLarge { bytes: 2, limit: 1 }),
        1 => Just(Fate::NotSent),
    ]
}

proptest! {
    /// Each event ends in exactly one place; in a stream, nothing is processed after a failure.
    #[test]
    fn a_stream_is_processed_up_to_its_first_failure(
        events in proptest::collection::vec((0_u8..5, fate()), 0..60),
    ) {
        let slots: Vec<_> =
            events.iter().zip(1..).map(|((stream, _), id)| slot(id, *stream, None)).collect();
        let fates: Vec<_> = events.iter().map(|(_, fate)| *fate).collect();
        let settlement = settle(&slots, &fates, POLICY, || 0.5);
        for stream in 0_u8..5 {
            let own: Vec<_> = (0..slots.len()).filter(|i| events[*i].0 == stream).collect();
            let confirmed = own.iter().take_while(|i| fates[**i] == Fate::Confirmed).count();
            for (place, index) in own.iter().enumerate() {
                let id = slots[*index].id;
                prop_assert_eq!(settlement.processed.contains(&id), place < confirmed);
                prop_assert_eq!(settlement.set_aside.contains(&id), place >= confirmed);
            }
            let key = format!("order-{stream}");
            let holds: Vec<_> =
                settlement.holds.iter().filter(|hold| hold.stream_key == key).collect();
            prop_assert_eq!(holds.len(), usize::from(confirmed < own.len()));
            if let Some(hold) = holds.first() {
                prop_assert_eq!(hold.outbox_id, slots[own[confirmed]].id);
            }
        }
        prop_assert_eq!(settlement.processed.len() + settlement.set_aside.len(), slots.len());
    }
}

#[test]
fn each_failure_has_its_reason_and_its_metric() {
    for (fate, label, reason) in [
        (Fate::Returned, "returned", "no queue is bound for routing key order.Ord"),
        (Fate::Nacked, "nacked", "RabbitMQ refused the message with routing key ord"),
        (
            Fate::TooLarge { bytes: 7, limit: 5 },
            "too_large",
            "the event has 7 bytes, and relay.max_message_bytes allows 5",
        ),
    ] {
        let settlement = settle(&[slot(1, 1, None)], &[fate], POLICY, || 0.5);
        assert!(settlement.holds[0].error.starts_with(reason), "{}", settlement.holds[0].error);
        assert_eq!(fate.label(), Some(label));
    }
    assert_eq!(Fate::Confirmed.label(), Some("confirmed"));
    assert_eq!(Fate::NotSent.label(), None);
}

#[test]
fn a_stream_that_fails_again_waits_longer() {
    let wait = |attempts| {
        let slots = [slot(1, 1, attempts)];
        settle(&slots, &[Fate::Returned], POLICY, || 1.0).holds[0].retry_after
    };
    assert_eq!(wait(None), Duration::from_millis(100));
    assert_eq!(wait(Some(3)), Duration::from_millis(800));
    assert_eq!(wait(Some(60)), Duration::from_secs(10));
}

#[test]
fn a_stream_that_waited_recovers_when_nothing_of_it_failed() {
    let slots = [slot(1, 1, Some(2)), slot(2, 2, Some(2)), slot(3, 3, None)];
    let fates = [Fate::Confirmed, Fate::Returned, Fate::Confirmed];
    assert_eq!(settle(&slots, &fates, POLICY, || 0.5).recovered, ["order-1"]);
}
