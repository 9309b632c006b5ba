//! Detects stuck queues.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use read_model::Instance;

/// A queue that has messages and delivers to no instance is stuck after this many graces.
const GRACES_UNSERVED: u32 = 3;
/// The minimum: RabbitMQ may need three heartbeats of 10 s to drop a frozen consumer.
const UNSERVED_MIN: Duration = Duration::from_secs(40);

/// Queues that have messages and deliver to no instance, and since when.
///
/// Quorum queues have been stuck like this by errors of RabbitMQ (rabbitmq-server issues 1825 and 17317), and a
/// consumer of another program has the same effect. Such a queue only grows. It is reported and not deleted: AMQP
/// does not tell whether the cluster is whole, and a queue that is deleted while a node is down may be lost.
#[derive(Debug, Clone)]
pub(crate) struct Unserved {
    /// How long a queue may deliver to no instance before it is stuck.
    limit: Duration,
    queues: HashMap<usize, Spell>,
}

#[derive(Debug, Clone, Copy)]
struct Spell {
    since: Instant,
    /// Whether the last count was 0.
    empty: bool,
}

impl Unserved {
    pub(crate) fn new(grace: Duration) -> Self {
        let limit = UNSERVED_MIN.max(grace * GRACES_UNSERVED);
        Self { limit, queues: HashMap::new() }
    }

    /// Records the number of messages in each queue, and which queues deliver to an instance. Returns the
    /// numbers of the stuck queues.
    pub(crate) fn stuck(
        &mut self,
        ready: &[u32],
        instances: &[Instance],
        now: Instant,
    ) -> Vec<usize> {
        let is_served = |number: usize| {
            let held = |instance: &Instance| {
                instance.partitions.iter().any(|held| usize::from(*held) == number + 1)
            };
            instances.is_empty() || instances.iter().any(held)
        };
        let mut stuck = Vec::new();
        for (number, messages) in ready.iter().enumerate() {
            let empty = *messages == 0;
            let known = self.queues.get(&number);
            // One count of 0 proves nothing: RabbitMQ also reports 0 when the leader of a queue is slow to
            // answer.
            if is_served(number) || (empty && known.is_none_or(|spell| spell.empty)) {
                self.queues.remove(&number);
                continue;
            }
            let spell = self.queues.entry(number).or_insert(Spell { since: now, empty });
            spell.empty = empty;
            if now - spell.since >= self.limit {
                stuck.push(number);
            }
        }
        stuck
    }

    /// How long a queue may deliver to no instance before it is stuck.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Starts over with all queues, after messages could not be counted.
    pub(crate) fn forget(&mut self) {
        self.queues.clear();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const GRACE: Duration = Duration::from_secs(20);

    fn instance(partitions: &[u16]) -> Instance {
        let (id, host) = (Uuid::nil(), String::new());
        Instance { id, host, of: 2, partitions: partitions.to_vec() }
    }

    #[test]
    fn a_queue_that_delivers_to_no_instance_is_stuck_after_the_limit() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut unserved = Unserved::new(GRACE);
        let none = [instance(&[]), instance(&[])];
        // The time counts, not the number of checks.
        for seconds in [0, 8, 48, 59] {
            assert!(unserved.stuck(&[5, 0], &none, after(seconds)).is_empty());
        }
        assert_eq!(unserved.stuck(&[7, 0], &none, after(60)), [0]);
        assert_eq!(unserved.stuck(&[7, 5], &none, after(61)), [0]);
        assert_eq!(unserved.stuck(&[7, 5], &none, after(121)), [0, 1]);
        unserved.forget();
        assert!(unserved.stuck(&[7, 5], &none, after(123)).is_empty());
    }

    #[test]
    fn the_limit_leaves_rabbitmq_time_to_drop_a_frozen_consumer() {
        let begun = Instant::now();
        let mut unserved = Unserved::new(Duration::from_secs(1));
        let none = [instance(&[])];
        assert!(unserved.stuck(&[5], &none, begun).is_empty());
        assert!(unserved.stuck(&[5], &none, begun + Duration::from_secs(39)).is_empty());
        assert_eq!(unserved.stuck(&[5], &none, begun + Duration::from_secs(40)), [0]);
    }

    #[test]
    fn a_single_count_of_zero_does_not_restart() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut unserved = Unserved::new(GRACE);
        let none = [instance(&[])];
        for (seconds, ready) in [(0, 5), (20, 0), (40, 5)] {
            assert!(unserved.stuck(&[ready], &none, after(seconds)).is_empty());
        }
        assert_eq!(unserved.stuck(&[5], &none, after(60)), [0]);
        assert_eq!(unserved.stuck(&[0], &none, after(61)), [0]);
        assert!(unserved.stuck(&[0], &none, after(62)).is_empty());
        assert!(unserved.stuck(&[5], &none, after(63)).is_empty());
    }

    #[test]
    fn a_delivery_or_the_absence_of_instances_restarts() {
        let begun = Instant::now();
        let none = [instance(&[])];
        for instances in [vec![instance(&[1])], Vec::new()] {
            let mut unserved = Unserved::new(GRACE);
            let after = |seconds| begun + Duration::from_secs(seconds);
            assert!(unserved.stuck(&[5], &none, begun).is_empty());
            assert!(unserved.stuck(&[5], &instances, after(30)).is_empty());
            assert!(unserved.stuck(&[5], &none, after(70)).is_empty());
        }
    }
}
