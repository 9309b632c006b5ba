//! Which events of a group may run in the same sets.
//!
//! A group of events with the same handler runs statement by statement, instead of event by event. That is
//! the same if no two of the events meet in a row. Events that meet run in different *rounds*, in their
//! order: the n-th event of each row runs in the n-th round.
//!
//! **Invariant:** of two events that touch the same row, the later one is in a later round; or in the same
//! round if one statement handles both in order. (`events_that_meet_keep_their_order`)

use std::collections::{BTreeSet, HashMap};

use serde_json::Value as Json;

use super::row::Row;

/// Events that have equal values here touch the same rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meeting {
    /// For each statement that touches the table, its number within the handler, and the places of the
    /// values in its row.
    pub(crate) at: Vec<(usize, Vec<usize>)>,
    /// Whether such events need different rounds. Otherwise one statement handles them in order.
    pub(crate) needs_rounds: bool,
}

/// Where the events of a handler can meet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meetings {
    pub(crate) all: Vec<Meeting>,
    /// Whether events may meet where no value tells. Then no event runs in an earlier round than one before
    /// it.
    pub(crate) anywhere: bool,
}

impl Meetings {
    /// Whether events of one stream need different rounds.
    pub(crate) fn need_rounds(&self) -> bool {
        self.all.iter().any(|meeting| meeting.needs_rounds)
    }

    /// The indexes of the events of each round. Each event is given by the rows of its statements.
    pub(crate) fn rounds(&self, events: &[&Vec<Row>]) -> Vec<Vec<usize>> {
        let mut last: HashMap<(usize, String), usize> = HashMap::new();
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        for (index, rows) in events.iter().enumerate() {
            let mut keys = BTreeSet::new();
            let mut round = if self.anywhere { rounds.len().saturating_sub(1) } else { 0 };
            for (number, meeting) in self.all.iter().enumerate() {
                for (statement, places) in &meeting.at {
                    let values = places.iter().map(|place| text(&rows[*statement][*place]));
                    let key = (number, values.collect::<Vec<_>>().join("\u{0}"));
                    if let Some(before) = last.get(&key) {
                        round = round.max(before + usize::from(meeting.needs_rounds));
                    }
                    keys.insert(key);
                }
            }
            last.extend(keys.into_iter().map(|key| (key, round)));
            if rounds.len() <= round {
                rounds.resize_with(round + 1, Vec::new);
            }
            rounds[round].push(index);
        }
        rounds
    }
}

/// The text of a value. Values that any column would take as equal have equal texts.
fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.trim_end_matches(' ').to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn events_that_meet_keep_their_order(
            raw in proptest::collection::vec((0_u8..5, 0_u8..5), 0..40),
            strict in any::<bool>(), anywhere in any::<bool>(),
        ) {
            let meeting = Meeting { at: vec![(0, vec![0]), (1, vec![0])], needs_rounds: strict };
            let meetings = Meetings { all: vec![meeting], anywhere };
            let events: Vec<Vec<Row>> =
                raw.iter().map(|(a, b)| vec![vec![json!(a)], vec![json!(b)]]).collect();
            let rounds = meetings.rounds(&events.iter().collect::<Vec<_>>());
            let mut order: Vec<usize> = rounds.iter().flatten().copied().collect();
            let of = |index: usize| rounds.iter().position(|round| round.contains(&index)).unwrap();
            for later in 0..raw.len() {
                for earlier in 0..later {
                    let (one, other) = (raw[earlier], raw[later]);
                    let meet = [one.0, one.1].iter().any(|it| [other.0, other.1].contains(it));
                    prop_assert!(!(meet && strict) || of(earlier) < of(later));
                    prop_assert!(!(meet || anywhere) || of(earlier) <= of(later));
                }
            }
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..raw.len()));
        }
    }
}
