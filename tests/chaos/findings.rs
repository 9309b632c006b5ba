//! The errors that a campaign can find. Each kind has a name.

use std::collections::BTreeMap;

/// A kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wrong {
    /// The last events of a stream have no effect.
    Lost,
    /// An event has no effect, but a later one of its stream has.
    Skipped,
    /// An event took effect more than once.
    Doubled,
    /// An event took effect after a later one of its stream.
    Inverted,
    /// An event that cannot be applied did not stop its stream.
    PassedOver,
    /// An event took effect that is not in the event store.
    Phantom,
    /// A read model differs from a sequential fold of its events.
    Differs,
    /// An event is marked as processed but was never published.
    Unpublished,
    /// An event waits in the outbox without a reason.
    LeftBehind,
    /// The first copies of two events of a stream came in the wrong order without a reason.
    InvertedOnTheWire,
    /// A published event is not in the event store, or a stored event was rolled back.
    RolledBack,
    /// A committed event is not in the event store.
    NotStored,
    /// A stream waits for a person, a message became a dead letter, or a projection or rebuild stopped.
    GivenUp,
    /// Events did not flow again after a fault, or something did not return to its initial state.
    NotRecovered,
    /// A daemon ended by itself, did not end on SIGTERM, or panicked.
    Daemon,
    /// The campaign did not cover everything that it must.
    TooWeak,
}

/// The errors found: a count and a few examples of each kind.
#[derive(Default, Clone)]
pub(crate) struct Findings(BTreeMap<Wrong, (u64, Vec<String>)>);

const EXAMPLES: usize = 5;

impl Findings {
    pub(crate) fn add(&mut self, wrong: Wrong, example: impl FnOnce() -> String) {
        let (count, examples) = self.0.entry(wrong).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }

    pub(crate) fn extend(&mut self, others: Self) {
        for (wrong, (count, examples)) in others.0 {
            let (all, kept) = self.0.entry(wrong).or_default();
            *all += count;
            kept.extend(examples);
            kept.truncate(EXAMPLES);
        }
    }

    pub(crate) fn count(&self, wrong: Wrong) -> u64 {
        self.0.get(&wrong).map_or(0, |(count, _)| *count)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Wrong, u64, &[String])> {
        self.0.iter().map(|(wrong, (count, examples))| (*wrong, *count, examples.as_slice()))
    }

    /// The number of all errors.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().map(|(count, _)| count).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
