//! Groups the events of a batch for execution. Pure.
//!
//! The order of events matters within a stream, but rarely between streams. Events of different streams that
//! have the same handler can therefore run as one set: one statement for all of them. Where the order between
//! streams matters, only neighbours form a set.

use std::collections::{BTreeMap, VecDeque};

/// One event to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// A number that identifies its stream.
    pub stream: usize,
    /// A number that identifies the kind of set that the event can join; `None` if it must run alone.
    pub set: Option<usize>,
    /// Whether a set of this kind may hold several events of one stream.
    pub keeps_order: bool,
}

/// Groups tasks. The tasks of one stream must be adjacent and in order. Each group lists the indexes of its
/// tasks; they have the same `set`, unless the group is a single task.
pub fn schedule(tasks: &[Task]) -> Vec<Vec<usize>> {
    let mut streams: Vec<VecDeque<usize>> = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        match streams.last_mut() {
            Some(stream) if tasks[stream[0]].stream == task.stream => stream.push_back(index),
            _ => streams.push(VecDeque::from([index])),
        }
    }
    let mut groups = Vec::new();
    while !streams.is_empty() {
        groups.push(next(tasks, &mut streams));
        streams.retain(|stream| !stream.is_empty());
    }
    groups
}

/// Groups tasks without changing their order: only neighbours become a group.
pub fn schedule_in_order(tasks: &[Task]) -> Vec<Vec<usize>> {
    let joins = |one: &Task, next: &Task| {
        one.set.is_some() && one.set == next.set && one.keeps_order && next.keeps_order
    };
    let mut first = 0;
    tasks
        .chunk_by(joins)
        .map(|group| {
            let indexes = (first..first + group.len()).collect();
            first += group.len();
            indexes
        })
        .collect()
}

/// Removes the largest group whose tasks are all first in their streams, or the first task that must run
/// alone.
fn next(tasks: &[Task], streams: &mut [VecDeque<usize>]) -> Vec<usize> {
    let mut ready: BTreeMap<usize, usize> = BTreeMap::new();
    for stream in streams.iter() {
        match tasks[stream[0]].set {
            Some(set) => *ready.entry(set).or_default() += 1,
            // A task that must run alone is taken at once, so the counts are not needed.
            None => break,
        }
    }
    let alone = streams.iter_mut().find(|stream| tasks[stream[0]].set.is_none());
    if let Some(task) = alone.and_then(VecDeque::pop_front) {
        return vec![task];
    }
    let largest = ready.into_iter().max_by_key(|(_, count)| *count).map(|(set, _)| set);
    let mut group = Vec::new();
    for stream in streams {
        while let Some(first) = stream.front().copied()
            && tasks[first].set == largest
        {
            group.push(first);
            stream.pop_front();
            if !tasks[first].keeps_order {
                break;
            }
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_task_runs_once_and_each_stream_in_order(
            raw in proptest::collection::vec((0_usize..6, proptest::option::of(0_usize..4)), 0..60),
        ) {
            let mut raw = raw;
            raw.sort_by_key(|(stream, _)| *stream);
            let tasks: Vec<_> = raw
                .into_iter()
                // Set 3 cannot hold two events of one stream.
                .map(|(stream, set)| Task { stream, set, keeps_order: set != Some(3) })
                .collect();
            let groups = schedule(&tasks);
            let order: Vec<usize> = groups.iter().flatten().copied().collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..tasks.len()));
            for stream in 0..6 {
                let own: Vec<_> = order.iter().filter(|task| tasks[**task].stream == stream).collect();
                prop_assert!(own.is_sorted());
            }
            for group in groups {
                let sets: Vec<_> = group.iter().map(|task| tasks[*task].set).collect();
                prop_assert!(group.len() == 1 || (sets[0].is_some() && sets.windows(2).all(|w| w[0] == w[1])));
                let mut streams: Vec<_> = group.iter().map(|task| tasks[*task].stream).collect();
                streams.dedup();
                prop_assert!(sets[0] != Some(3) || streams.len() == group.len());
            }
        }
    }

    #[test]
    fn in_order_only_neighbours_form_a_group() {
        let task = |set, keeps_order| Task { stream: 0, set, keeps_order };
        let (one, other) = (task(Some(0), true), task(Some(1), true));
        let (alone, distinct) = (task(None, true), task(Some(2), false));
        let tasks = [one, one, other, one, alone, alone, distinct, distinct];
        let groups = schedule_in_order(&tasks);
        assert_eq!(groups, [vec![0, 1], vec![2], vec![3], vec![4], vec![5], vec![6], vec![7]]);
    }

    #[test]
    fn the_largest_group_comes_first() {
        let task = |stream, set| Task { stream, set: Some(set), keeps_order: true };
        // Stream 0 has two events, one for each set; streams 1 and 2 have one each.
        let tasks = [task(0, 0), task(0, 1), task(1, 0), task(2, 1)];
        assert_eq!(schedule(&tasks), [vec![0, 2], vec![1, 3]]);
    }
}
