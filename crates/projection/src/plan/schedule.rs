//! In which groups events are applied. Pure.
//!
//! Within a stream the order is kept; between streams there is none. So events of many streams that
//! have the same handler can be one set.

use std::collections::{BTreeMap, VecDeque};

/// An event to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Its stream, by any number.
    pub stream: usize,
    /// Its handler, by any number, if many of its events can be one set.
    pub set: Option<usize>,
    /// Whether such a set can hold several events of one stream.
    pub keeps_order: bool,
}

/// Groups tasks, given by stream and in each stream in order. Each group is the numbers of its tasks;
/// the tasks of a group have one handler, or it is one task.
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

/// Takes the largest group that can be taken now.
fn next(tasks: &[Task], streams: &mut [VecDeque<usize>]) -> Vec<usize> {
    let mut ready: BTreeMap<usize, usize> = BTreeMap::new();
    for stream in streams.iter() {
        match tasks[stream[0]].set {
            Some(set) => *ready.entry(set).or_default() += 1,
            // Alone anyway, and what is behind it waits for it.
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
        fn every_task_comes_once_and_each_stream_in_order(
            raw in proptest::collection::vec((0_usize..6, proptest::option::of(0_usize..4)), 0..60),
        ) {
            let mut raw = raw;
            raw.sort_by_key(|(stream, _)| *stream);
            let tasks: Vec<_> = raw
                .into_iter()
                // The last set cannot hold two events of a stream.
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
    fn the_largest_group_comes_first() {
        let task = |stream, set| Task { stream, set: Some(set), keeps_order: true };
        // Placed and paid; placed; paid.
        let tasks = [task(0, 0), task(0, 1), task(1, 0), task(2, 1)];
        assert_eq!(schedule(&tasks), [vec![0, 2], vec![1, 3]]);
    }
}
