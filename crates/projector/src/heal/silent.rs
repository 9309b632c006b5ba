//! Notices queues that bring nothing, although their events were published: another program receives them.
//!
//! RabbitMQ tells a client neither who consumes a queue nor how many messages it has given out. What can be known:
//! the sweeper finds events again and again that no delivery has brought, while no message waits in the queue and
//! no instance has one in its hands.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use daemon::output::counted;
use read_model::{Instance, QueueUse, Report};

/// A queue counts as silent when events were found missing so many times without a delivery in between.
const HEALS: u32 = 2;

/// A queue counts as silent for so many graces after the last heal.
const GRACES: u32 = 30;

/// The queues of a projection that may be silent.
#[derive(Debug, Default)]
pub(super) struct Silent(HashMap<usize, Spell>);

#[derive(Debug)]
struct Spell {
    /// How often instances began to consume the queue, and the number of its deliveries, at the begin.
    opened_and_delivered: (u64, u64),
    since: DateTime<Utc>,
    heals: u32,
    last_heal: Instant,
    events: usize,
}

/// What each queue has brought to all instances. `None` if one of them does not say so: it has another version.
pub(super) fn brought(
    projection: &str,
    instances: &[Instance],
    reports: &[Report],
) -> Option<Vec<QueueUse>> {
    let mut total: Vec<QueueUse> = Vec::new();
    for instance in instances {
        let report = reports.iter().find(|report| report.instance == instance.id)?;
        let run = report.projections.iter().find(|run| run.projection == projection)?;
        total.resize(total.len().max(run.queues.len()), QueueUse::default());
        for (all, one) in total.iter_mut().zip(&run.queues) {
            all.opened += one.opened;
            all.delivered += one.delivered;
            all.unsettled += one.unsettled;
        }
    }
    Some(total)
}

impl Silent {
    /// Forgets the queues that have brought something since, or that are consumed anew. Without a heal for
    /// [`GRACES`], nothing is known any more: a queue may just have no events.
    pub(super) fn update(&mut self, brought: Option<&[QueueUse]>, grace: Duration) {
        let Some(brought) = brought else { return self.0.clear() };
        self.0.retain(|_, spell| spell.last_heal.elapsed() < grace * GRACES);
        self.0.retain(|number, spell| {
            let now = brought.get(*number).copied().unwrap_or_default();
            (now.opened, now.delivered) == spell.opened_and_delivered && now.unsettled == 0
        });
    }

    /// Records that events were found missing. Each queue may have lost them.
    pub(super) fn healed(&mut self, queues: usize, brought: Option<&[QueueUse]>, events: usize) {
        let Some(brought) = brought else { return };
        let now = Instant::now();
        for number in 0..queues {
            let QueueUse { opened, delivered, .. } =
                brought.get(number).copied().unwrap_or_default();
            let (since, opened_and_delivered) = (Utc::now(), (opened, delivered));
            let spell = Spell { opened_and_delivered, since, heals: 0, last_heal: now, events: 0 };
            let spell = self.0.entry(number).or_insert(spell);
            spell.heals += 1;
            spell.last_heal = now;
            spell.events += events;
        }
    }

    /// Says which queues are silent; `None` without one. `names` are the names of the queues.
    pub(super) fn reason(&self, names: &[&str]) -> Option<String> {
        let mut silent: Vec<(&str, &Spell)> = self
            .0
            .iter()
            .filter(|(_, spell)| spell.heals >= HEALS)
            .filter_map(|(number, spell)| Some((*names.get(*number)?, spell)))
            .collect();
        silent.sort_unstable_by_key(|(name, _)| *name);
        let since = silent.iter().map(|(_, spell)| spell.since).min()?;
        let events = silent.iter().map(|(_, spell)| spell.events).max()?;
        let queues: Vec<&str> = silent.iter().map(|(name, _)| *name).collect();
        Some(format!(
            "{} brought nothing since {}, although {} then found missing \
             and applied from the event store: another program probably receives the messages. `rabbitmqctl \
             list_consumers` names it; close its connection",
            queues.join(", "),
            since.to_rfc3339_opts(SecondsFormat::Secs, true),
            counted(events, "published event was", "published events were")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(20);

    fn brought(delivered: u64, unsettled: u64) -> Vec<QueueUse> {
        vec![QueueUse { opened: 1, delivered, unsettled }, QueueUse::default()]
    }

    #[test]
    fn a_queue_is_silent_from_the_second_heal_until_a_delivery() {
        let names = ["one", "two"];
        let mut silent = Silent::default();
        silent.healed(2, Some(&brought(7, 0)), 3);
        silent.update(Some(&brought(7, 0)), GRACE);
        assert_eq!(silent.reason(&names), None);
        silent.healed(2, Some(&brought(7, 0)), 3);
        let reason = silent.reason(&names).unwrap();
        assert!(reason.starts_with("one, two brought nothing since 20"), "{reason}");
        assert!(reason.contains("although 6 published events were then found missing"), "{reason}");
        silent.update(Some(&brought(8, 0)), GRACE);
        assert!(silent.reason(&names).unwrap().starts_with("two brought nothing"));
        silent.update(None, GRACE);
        assert_eq!(silent.reason(&names), None);
    }

    #[test]
    fn a_queue_whose_messages_an_instance_has_is_not_silent() {
        let mut silent = Silent::default();
        for _ in 0..3 {
            silent.healed(1, Some(&brought(7, 2)), 1);
            silent.update(Some(&brought(7, 2)), GRACE);
        }
        assert_eq!(silent.reason(&["one"]), None);
    }
}
