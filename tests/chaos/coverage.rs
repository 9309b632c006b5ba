//! The situations that a campaign must cover: one without a duplicate proves nothing about duplicates.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::account::lock;
use crate::databases::{self, LIMIT};
use crate::faults::Kind;
use crate::fleet::USER;
use crate::inject::Harm;

const PERIOD: Duration = Duration::from_millis(500);

/// A situation that a campaign must cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Goal {
    /// An event was published more than once.
    Duplicate,
    /// The projector read events from the event store, because their messages did not arrive.
    HealedGap,
    /// A relay took over lanes whose last claim was broken off.
    LaneTakenOver,
    /// A server did not answer a daemon in time.
    Silence,
    /// MySQL rolled back a batch because of a deadlock.
    Deadlock,
    /// The broker accepted no messages for a while.
    BlockedBroker,
    /// The server answered a COMMIT, and the answer did not arrive.
    UnknownCommit,
    /// A rebuild swapped its tables while a fault lasted or its recovery was not complete.
    CutOverUnderFire,
    /// The broker refused a message.
    Nack,
    /// No queue was bound for a message.
    Return,
    /// A stream has an event that cannot be applied.
    Poison,
}

impl Goal {
    pub(crate) const ALL: [Self; 11] = [
        Self::Duplicate,
        Self::HealedGap,
        Self::LaneTakenOver,
        Self::Silence,
        Self::Deadlock,
        Self::BlockedBroker,
        Self::UnknownCommit,
        Self::CutOverUnderFire,
        Self::Nack,
        Self::Return,
        Self::Poison,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "an event published twice",
            Self::HealedGap => "a gap healed from the event store",
            Self::LaneTakenOver => "a lane taken over",
            Self::Silence => "a server that did not answer in time",
            Self::Deadlock => "a batch that lost a deadlock",
            Self::BlockedBroker => "a blocked broker",
            Self::UnknownCommit => "a commit with unknown outcome",
            Self::CutOverUnderFire => "a cut-over during a fault",
            Self::Nack => "a message that the broker refused",
            Self::Return => "a message without a queue",
            Self::Poison => "a stream with an event that cannot be applied",
        }
    }

    /// Faults that usually cause it.
    pub(crate) const fn provoked_by(self) -> &'static [Kind] {
        match self {
            Self::Duplicate | Self::LaneTakenOver => &[Kind::KillRelay],
            Self::HealedGap => &[Kind::PurgeQueue],
            Self::Silence => &[Kind::BlackHole],
            Self::Deadlock => &[Kind::Deadlock],
            Self::BlockedBroker => &[Kind::MemoryAlarm],
            Self::UnknownCommit => &[Kind::CutAtCommitAnswer],
            Self::CutOverUnderFire => &[Kind::Rebuild, Kind::Latency],
            Self::Nack => &[Kind::RefuseMessages],
            Self::Return => &[Kind::RemoveBindings],
            // The writers cause it.
            Self::Poison => &[],
        }
    }
}

/// How often each situation occurred.
#[derive(Default)]
pub(crate) struct Coverage(Mutex<BTreeMap<Goal, u64>>);

impl Coverage {
    pub(crate) fn add(&self, goal: Goal, times: u64) {
        *lock(&self.0).entry(goal).or_default() += times;
    }

    pub(crate) fn counts(&self) -> BTreeMap<Goal, u64> {
        lock(&self.0).clone()
    }
}

/// Polls daemons and read models.
pub(crate) struct Observer {
    pub(crate) coverage: Arc<Coverage>,
    _tasks: JoinSet<()>,
}

impl Observer {
    pub(crate) fn start(harm: &Arc<Harm>, mysql_url: &str, active: &Arc<AtomicUsize>) -> Self {
        let coverage = Arc::<Coverage>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(observe_daemons(Arc::clone(harm), Arc::clone(&coverage)));
        let (url, active) = (mysql_url.to_owned(), Arc::clone(active));
        tasks.spawn(observe_read_models(url, active, Arc::clone(&coverage)));
        Self { coverage, _tasks: tasks }
    }
}

async fn observe_daemons(harm: Arc<Harm>, coverage: Arc<Coverage>) {
    let mut last: HashMap<(usize, String), f64> = HashMap::new();
    let mut blocked = HashSet::new();
    loop {
        for (number, slot) in harm.fleet.slots.iter().enumerate() {
            if let Some(page) = slot.page("/readyz").await {
                if !page.contains("takes no messages") {
                    blocked.remove(&number);
                } else if blocked.insert(number) {
                    coverage.add(Goal::BlockedBroker, 1);
                }
            }
            let page = slot.page("/metrics").await.unwrap_or_default();
            for line in page.lines() {
                let Some((series, value)) = line.rsplit_once(' ') else { continue };
                let Some(goal) = goal_of(series) else { continue };
                let value: f64 = value.parse().unwrap_or_default();
                let before = last.insert((number, series.to_owned()), value).unwrap_or_default();
                // A new process counts from zero.
                let more = if value < before { value } else { value - before };
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count"
                )]
                coverage.add(goal, more as u64);
            }
        }
        sleep(PERIOD).await;
    }
}

fn goal_of(series: &str) -> Option<Goal> {
    if series.starts_with("projector_healed_events_total") && series.contains("by=\"gap\"") {
        Some(Goal::HealedGap)
    } else if series == "outbox_relay_messages_published_total{outcome=\"nacked\"}" {
        Some(Goal::Nack)
    } else if series == "outbox_relay_messages_published_total{outcome=\"returned\"}" {
        Some(Goal::Return)
    } else {
        None
    }
}

/// Each rebuild raises the generation of its projection when it swaps the tables. MySQL counts the deadlocks
/// of each user.
async fn observe_read_models(url: String, active: Arc<AtomicUsize>, coverage: Arc<Coverage>) {
    let mut last: Option<(i64, i64)> = None;
    loop {
        let mut connection = databases::mysql(&url).await;
        loop {
            let busy = active.load(Ordering::Relaxed);
            let read = sqlx::query_as(
                "SELECT CAST(COALESCE(SUM(generation), 0) AS SIGNED),
                        CAST((SELECT COALESCE(SUM(sum_error_raised), 0)
                              FROM performance_schema.events_errors_summary_by_user_by_error
                              WHERE user = ? AND error_number = 1213) AS SIGNED)
                 FROM projector_projections",
            );
            let read = read.bind(USER).fetch_one(&mut connection);
            let Ok(Ok((generations, deadlocks))) = timeout(LIMIT, read).await else { break };
            if let Some((before, deadlocks_before)) = last {
                if generations > before && busy > 0 {
                    coverage.add(Goal::CutOverUnderFire, 1);
                }
                // A restarted server counts from zero.
                coverage.add(Goal::Deadlock, u64::from(deadlocks > deadlocks_before));
            }
            last = Some((generations, deadlocks));
            sleep(PERIOD / 5).await;
        }
        sleep(PERIOD).await;
    }
}
