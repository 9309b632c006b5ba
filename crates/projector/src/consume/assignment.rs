//! Computes which instance should hold which partition. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use uuid::Uuid;

/// Assigns each partition to an instance by rendezvous hashing with limits: the load is even, and few
/// partitions move when an instance joins or leaves. The order of `instances` does not matter.
///
/// Returns nothing if there is no instance.
pub(crate) fn assign(instances: &[Uuid], partitions: u16) -> Vec<Uuid> {
    if instances.is_empty() {
        return Vec::new();
    }
    let mut pairs: Vec<_> = (0..usize::from(partitions))
        .flat_map(|partition| instances.iter().map(move |instance| (partition, *instance)))
        .map(|(partition, instance)| (weight(partition, instance), partition, instance))
        .collect();
    pairs.sort_unstable();
    let (even, mut extra) =
        (usize::from(partitions) / instances.len(), usize::from(partitions) % instances.len());
    let mut assigned: Vec<Option<Uuid>> = vec![None; usize::from(partitions)];
    for (_, partition, instance) in pairs {
        let held = assigned.iter().filter(|holder| **holder == Some(instance)).count();
        let has_room = held < even || (held == even && extra > 0);
        if assigned[partition].is_none() && has_room {
            assigned[partition] = Some(instance);
            extra -= usize::from(held == even);
        }
    }
    assigned.into_iter().flatten().collect()
}

fn weight(partition: usize, instance: Uuid) -> u64 {
    // `DefaultHasher::new` has fixed keys, so every process computes the same weights.
    let mut hasher = DefaultHasher::new();
    (partition, instance.as_u128()).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_partition_is_assigned_and_the_load_is_even(
            raw in proptest::collection::hash_set(any::<u128>(), 1..9), partitions in 1_u16..65,
        ) {
            let mut instances: Vec<Uuid> = raw.into_iter().map(Uuid::from_u128).collect();
            let assigned = assign(&instances, partitions);
            prop_assert_eq!(assigned.len(), usize::from(partitions));
            let mut held: HashMap<Uuid, usize> = HashMap::new();
            for instance in &assigned {
                *held.entry(*instance).or_default() += 1;
            }
            let even = usize::from(partitions) / instances.len();
            for instance in &instances {
                let held = held.get(instance).copied().unwrap_or(0);
                prop_assert!(held == even || held == even + 1);
            }
            instances.reverse();
            prop_assert_eq!(assign(&instances, partitions), assigned);
        }
    }
}
