use proptest::prelude::*;

use super::*;

fn policy() -> FailurePolicy {
    FailurePolicy {
        retry_min: Duration::from_millis(100),
        retry_max: Duration::from_secs(10),
        max_attempts: 3,
        discard_unroutable: vec!["audit.#".parse().unwrap()],
        delete: false,
    }
}

fn slot(id: i64, stream: u8, attempts: Option<u32>) -> Slot {
    Slot {
        id: OutboxId::from(id),
        lane: Lane::from(0),
        stream_key: format!("order-{stream}"),
        routing_key: "order.OrderPlaced".to_owned(),
        attempts,
    }
}

fn events(slots: Vec<Slot>, fates: Vec<Fate>) -> Vec<EventFate> {
    slots.into_iter().zip(fates).map(|(slot, fate)| EventFate { slot, fate }).collect()
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Confirmed),
        1 => Just(Fate::Discarded),
        1 => Just(Fate::Returned),
        1 => Just(Fate::Nacked),
        1 => Just(Fate::TooLarge { bytes: 2, limit: 1 }),
        1 => Just(Fate::Refused { reason: String::new() }),
        1 => Just(Fate::Malformed { reason: String::new() }),
        1 => Just(Fate::Unanswered),
    ]
}

fn succeeded(fate: &Fate) -> bool {
    matches!(fate, Fate::Confirmed | Fate::Discarded)
}

proptest! {
    /// Each event ends in exactly one place. In a stream, no event is processed after a failure, and
    /// no row changes from the first unanswered event on.
    #[test]
    fn a_stream_is_processed_up_to_its_first_failure(
        batch in proptest::collection::vec((0_u8..5, fate()), 0..60),
    ) {
        let event = |((stream, fate), id): ((u8, Fate), i64)| {
            EventFate { slot: slot(id, stream, None), fate }
        };
        let batch: Vec<EventFate> = batch.into_iter().zip(1..).map(event).collect();
        let settlement = settle(&batch, &policy(), || 0.5);
        for stream in 0_u8..5 {
            let key = format!("order-{stream}");
            let own: Vec<_> = batch.iter().filter(|it| it.slot.stream_key == key).collect();
            let done = own.iter().take_while(|it| succeeded(&it.fate)).count();
            let stopped_by = own.get(done).map(|it| &it.fate);
            let aside = stopped_by.is_some_and(|fate| *fate != Fate::Unanswered);
            for (place, it) in own.iter().enumerate() {
                let id = it.slot.id;
                prop_assert_eq!(settlement.processed.contains(&id), place < done);
                prop_assert_eq!(settlement.set_aside.contains(&id), place >= done && aside);
            }
            let holds: Vec<_> =
                settlement.holds.iter().filter(|hold| hold.stream_key == key).collect();
            prop_assert_eq!(holds.len(), usize::from(aside));
            if let Some(hold) = holds.first() {
                prop_assert_eq!(hold.outbox_id, own[done].slot.id);
            }
        }
    }
}

#[test]
fn each_failure_has_its_reason_and_its_metric() {
    for (fate, label, reason, text) in [
        (
            Fate::Returned,
            "returned",
            Reason::Unroutable,
            "no queue is bound for routing key order.Ord",
        ),
        (
            Fate::Nacked,
            "nacked",
            Reason::Nacked,
            "RabbitMQ rejected the message with routing key order.Ord",
        ),
        (
            Fate::TooLarge { bytes: 7, limit: 5 },
            "too_large",
            Reason::TooLarge,
            "the event has 7 bytes, and 5 are allowed",
        ),
        (
            Fate::Refused { reason: "too big".to_owned() },
            "refused",
            Reason::Refused,
            "RabbitMQ refused the message: too big",
        ),
        (
            Fate::Malformed { reason: "a position must be positive".to_owned() },
            "malformed",
            Reason::Malformed,
            "the row is not a valid event: a position must be positive",
        ),
    ] {
        assert_eq!(fate.label(), Some(label));
        let hold =
            settle(&events(vec![slot(1, 1, None)], vec![fate]), &policy(), || 0.5).holds.remove(0);
        assert_eq!(hold.reason, reason);
        assert!(hold.error.starts_with(text), "{}", hold.error);
    }
    assert_eq!(Fate::Confirmed.label(), Some("confirmed"));
    assert_eq!(Fate::Discarded.label(), Some("discarded"));
    assert_eq!(Fate::AfterFailed.label(), None);
    assert_eq!(Fate::Unanswered.label(), None);
}

#[test]
fn a_stream_that_fails_again_waits_longer() {
    let wait = |attempts| {
        let events = events(vec![slot(1, 1, attempts)], vec![Fate::Returned]);
        settle(&events, &policy(), || 1.0).holds[0].retry_after
    };
    assert_eq!(wait(None), Some(Duration::from_millis(100)));
    assert_eq!(wait(Some(3)), Some(Duration::from_millis(800)));
    assert_eq!(wait(Some(60)), Some(Duration::from_secs(10)));
}

#[test]
fn only_an_event_that_itself_causes_the_failure_parks_its_stream() {
    let parked = |fate: &Fate, attempts| {
        let events = events(vec![slot(1, 1, attempts)], vec![fate.clone()]);
        settle(&events, &policy(), || 0.5).holds[0].retry_after.is_none()
    };
    for own_fault in
        [Fate::TooLarge { bytes: 2, limit: 1 }, Fate::Refused { reason: String::new() }]
    {
        assert!(!parked(&own_fault, None));
        assert!(!parked(&own_fault, Some(1)));
        assert!(parked(&own_fault, Some(2)));
    }
    assert!(parked(&Fate::Malformed { reason: String::new() }, None), "only another row can help");
    assert!(!parked(&Fate::Returned, Some(1_000)));
    assert!(!parked(&Fate::Nacked, Some(1_000)));
}

#[test]
fn an_event_that_needs_no_queue_is_discarded() {
    let fate = |key| Fate::of(Outcome::Returned, key, &policy());
    assert_eq!(fate("audit.Logged"), Fate::Discarded);
    assert_eq!(fate("order.OrderPlaced"), Fate::Returned);
}

#[test]
fn a_stream_that_waited_recovers_when_nothing_of_it_failed() {
    let slots = vec![
        slot(1, 1, Some(2)),
        slot(2, 2, Some(2)),
        slot(3, 3, None),
        slot(4, 4, Some(1)),
        slot(5, 4, Some(1)),
    ];
    let fates =
        vec![Fate::Confirmed, Fate::Returned, Fate::Confirmed, Fate::Confirmed, Fate::Unanswered];
    assert_eq!(settle(&events(slots, fates), &policy(), || 0.5).recovered, ["order-1"]);
}
