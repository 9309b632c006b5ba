//! Noticing queues that are stuck.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::mysql::Instance;

/// A queue that has messages and serves nobody is dead after so many graces,
const GRACES_UNSERVED: u32 = 3;
/// but not sooner: one statement of a batch may take 10 s.
const UNSERVED_MIN: Duration = Duration::from_secs(12);

/// Queues with messages that nobody is delivered, and since when.
///
/// After a crash, RabbitMQ 4.3 can take a consumer of before the crash for the single active one, for
/// ever; quorum queues have been stuck like this for other reasons too (rabbitmq-server issues 1825 and
/// 17317). Then a queue only grows.
#[derive(Debug, Clone)]
pub(crate) struct Unserved {
    /// From when on a queue is dead.
    limit: Duration,
    /// A queue that was not looked at for longer may have served somebody meanwhile.
    gap: Duration,
    queues: HashMap<usize, Spell>,
}

#[derive(Debug, Clone, Copy)]
struct Spell {
    since: Instant,
    seen: Instant,
}

impl Unserved {
    pub(crate) fn new(grace: Duration, interval: Duration) -> Self {
        let limit = UNSERVED_MIN.max(grace * GRACES_UNSERVED);
        Self { limit, gap: (limit / 2).max(interval * 2), queues: HashMap::new() }
    }

    /// Notes how many messages each queue has, and which queues the instances are served from; gives the
    /// queues that have served nobody for too long, until they are forgotten.
    pub(crate) fn dead(
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
        let mut dead = Vec::new();
        for (number, messages) in ready.iter().enumerate() {
            if *messages == 0 || is_served(number) {
                self.forget(number);
                continue;
            }
            let begun = Spell { since: now, seen: now };
            let spell = self.queues.entry(number).or_insert(begun);
            if now - spell.seen > self.gap {
                *spell = begun;
            }
            spell.seen = now;
            if now - spell.since >= self.limit {
                dead.push(number);
            }
        }
        dead
    }

    /// Lets a queue begin anew.
    pub(crate) fn forget(&mut self, number: usize) {
        self.queues.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);
    const INTERVAL: Duration = Duration::from_secs(5);

    fn instance(partitions: &[u16]) -> Instance {
        let (id, host) = (Uuid::nil(), String::new());
        Instance { id, host, of: 2, partitions: partitions.to_vec() }
    }

    #[test]
    fn a_queue_is_dead_when_it_serves_nobody_for_too_long() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut unserved = Unserved::new(GRACE, INTERVAL);
        let none = [instance(&[]), instance(&[])];
        for seconds in [0, 8, 16, 24, 29] {
            assert!(unserved.dead(&[5, 0], &none, after(seconds)).is_empty());
        }
        // Until somebody has seen to it.
        assert_eq!(unserved.dead(&[7, 0], &none, after(30)), [0]);
        assert_eq!(unserved.dead(&[7, 0], &none, after(31)), [0]);
        unserved.forget(0);
        assert!(unserved.dead(&[7, 0], &none, after(32)).is_empty());
    }

    #[test]
    fn while_nobody_looks_a_queue_may_serve_somebody() {
        let begun = Instant::now();
        let mut unserved = Unserved::new(GRACE, INTERVAL);
        let none = [instance(&[])];
        assert!(unserved.dead(&[5], &none, begun).is_empty());
        assert!(unserved.dead(&[5], &none, begun + Duration::from_secs(31)).is_empty());
    }

    #[test]
    fn a_delivery_an_empty_queue_or_nobody_there_begin_anew() {
        let begun = Instant::now();
        let none = [instance(&[])];
        for (ready, instances) in [(5, vec![instance(&[1])]), (0, none.to_vec()), (5, Vec::new())] {
            let mut unserved = Unserved::new(GRACE, INTERVAL);
            let after = |seconds| begun + Duration::from_secs(seconds);
            assert!(unserved.dead(&[5], &none, begun).is_empty());
            assert!(unserved.dead(&[ready], &instances, after(15)).is_empty());
            assert!(unserved.dead(&[5], &none, after(30)).is_empty());
        }
    }
}
