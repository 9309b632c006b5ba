//! A set of positions.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How many positions a chunk has.
const CHUNK: i64 = 4_096;
/// How many words a chunk has; each position is a bit.
const WORDS: usize = 64;

/// A set of positions. Dense ones take one bit each, so that a comparison of a hundred million events
/// needs 13 MB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    chunks: BTreeMap<i64, Box<[u64; WORDS]>>,
    len: usize,
}

impl Positions {
    /// How many positions there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a position. Returns whether it was new.
    pub fn insert(&mut self, position: i64) -> bool {
        let (chunk, word, bit) = place(position);
        let words = self.chunks.entry(chunk).or_insert_with(|| Box::new([0; WORDS]));
        let is_new = words[word] & bit == 0;
        words[word] |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// Removes a position. Returns whether it was there.
    pub fn remove(&mut self, position: i64) -> bool {
        let (chunk, word, bit) = place(position);
        let Some(words) = self.chunks.get_mut(&chunk).filter(|words| words[word] & bit != 0) else {
            return false;
        };
        words[word] &= !bit;
        self.len -= 1;
        if **words == [0; WORDS] {
            self.chunks.remove(&chunk);
        }
        true
    }

    /// Whether a position is in the set.
    pub fn contains(&self, position: i64) -> bool {
        let (chunk, word, bit) = place(position);
        self.chunks.get(&chunk).is_some_and(|words| words[word] & bit != 0)
    }

    /// The positions in a range, in order.
    pub fn range(&self, range: RangeInclusive<i64>) -> impl Iterator<Item = i64> {
        let (first, last) = (place(*range.start()).0, place(*range.end()).0);
        let chunks = (first <= last).then(|| self.chunks.range(first..=last));
        let words = chunks.into_iter().flatten().flat_map(|(chunk, words)| {
            (0..).zip(words.iter()).map(move |(number, word)| (chunk * CHUNK + number * 64, *word))
        });
        let all = words.flat_map(|(first, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
        });
        all.filter(move |position| range.contains(position))
    }

    /// All positions, in order.
    pub fn iter(&self) -> impl Iterator<Item = i64> {
        self.range(i64::MIN..=i64::MAX)
    }
}

impl Extend<i64> for Positions {
    fn extend<I: IntoIterator<Item = i64>>(&mut self, positions: I) {
        for position in positions {
            self.insert(position);
        }
    }
}

/// The chunk, the word in it, and the bit in the word.
fn place(position: i64) -> (i64, usize, u64) {
    let bit = u16::try_from(position.rem_euclid(CHUNK)).expect("a chunk has 4,096 positions");
    (position.div_euclid(CHUNK), usize::from(bit / 64), 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn position() -> impl Strategy<Value = i64> {
        prop_oneof![8 => -10..10_000_i64, 1 => any::<i64>(), 1 => Just(i64::MAX)]
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            changes in proptest::collection::vec((any::<bool>(), position()), 0..200),
            (from, to) in (position(), position()),
        ) {
            let (mut set, mut model) = (Positions::default(), BTreeSet::new());
            for (add, position) in changes {
                if add {
                    prop_assert_eq!(set.insert(position), model.insert(position));
                } else {
                    prop_assert_eq!(set.remove(position), model.remove(&position));
                }
                prop_assert_eq!(set.contains(position), model.contains(&position));
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert!(set.iter().eq(model.iter().copied()));
            let within = model.iter().copied().filter(|position| (from..=to).contains(position));
            prop_assert!(set.range(from..=to).eq(within));
        }
    }
}
