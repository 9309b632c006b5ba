//! What a campaign must have seen: one that never saw a duplicate proves nothing about duplicates.

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

/// Something that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Sight {
    /// An event was published more than once.
    Duplicate,
    /// Events were read from the event store, because their messages did not come.
    HealedGap,
    /// A relay went on with lanes whose last claim was broken off.
    LaneTakenOver,
    /// A server gave no answer within the time that a daemon has for it.
    Silence,
    /// A batch was ended by MySQL because of a deadlock.
    Deadlock,
    /// The broker took no messages for a while.
    BlockedBroker,
    /// A COMMIT was answered, and the answer did not arrive.
    UnknownCommit,
    /// The tables of a rebuild came into service while something was broken, or had not recovered.
    CutOverUnderFire,
    /// The broker refused a message.
    Nack,
    /// A message met no queue.
    Return,
    /// A stream has an event that cannot be applied.
    Poison,
}

impl Sight {
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
            Self::Silence => "a server that was silent for too long",
            Self::Deadlock => "a batch that lost a deadlock",
            Self::BlockedBroker => "a blocked broker",
            Self::UnknownCommit => "a commit with unknown outcome",
            Self::CutOverUnderFire => "a cut-over under fire",
            Self::Nack => "a message refused",
            Self::Return => "a message without a queue",
            Self::Poison => "a stream with an event that cannot be applied",
        }
    }

    /// Faults that bring it about, mostly.
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
            // The writers bring it.
            Self::Poison => &[],
        }
    }
}

/// How often each was seen.
#[derive(Default)]
pub(crate) struct Sights(Mutex<BTreeMap<Sight, u64>>);

impl Sights {
    pub(crate) fn add(&self, sight: Sight, times: u64) {
        *lock(&self.0).entry(sight).or_default() += times;
    }

    pub(crate) fn counts(&self) -> BTreeMap<Sight, u64> {
        lock(&self.0).clone()
    }
}

/// Looks at daemons and read models now and then.
pub(crate) struct Lookout {
    pub(crate) sights: Arc<Sights>,
    _tasks: JoinSet<()>,
}

impl Lookout {
    pub(crate) fn start(harm: &Arc<Harm>, mysql_url: &str, active: &Arc<AtomicUsize>) -> Self {
        let sights = Arc::<Sights>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(look_at_daemons(Arc::clone(harm), Arc::clone(&sights)));
        let (url, active) = (mysql_url.to_owned(), Arc::clone(active));
        tasks.spawn(look_at_read_models(url, active, Arc::clone(&sights)));
        Self { sights, _tasks: tasks }
    }
}

async fn look_at_daemons(harm: Arc<Harm>, sights: Arc<Sights>) {
    let mut last: HashMap<(usize, String), f64> = HashMap::new();
    let mut blocked = HashSet::new();
    loop {
        for (number, slot) in harm.fleet.slots.iter().enumerate() {
            if let Some(page) = slot.page("/readyz").await {
                if !page.contains("takes no messages") {
                    blocked.remove(&number);
                } else if blocked.insert(number) {
                    sights.add(Sight::BlockedBroker, 1);
                }
            }
            let page = slot.page("/metrics").await.unwrap_or_default();
            for line in page.lines() {
                let Some((series, value)) = line.rsplit_once(' ') else { continue };
                let Some(sight) = sight_of(series) else { continue };
                let value: f64 = value.parse().unwrap_or_default();
                let before = last.insert((number, series.to_owned()), value).unwrap_or_default();
                // A new process counts from nothing.
                let more = if value < before { value } else { value - before };
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count"
                )]
                sights.add(sight, more as u64);
            }
        }
        sleep(PERIOD).await;
    }
}

fn sight_of(series: &str) -> Option<Sight> {
    if series.starts_with("projector_healed_events_total") && series.contains("by=\"gap\"") {
        Some(Sight::HealedGap)
    } else if series == "outbox_relay_messages_published_total{outcome=\"nacked\"}" {
        Some(Sight::Nack)
    } else if series == "outbox_relay_messages_published_total{outcome=\"returned\"}" {
        Some(Sight::Return)
    } else {
        None
    }
}

/// Every rebuild that comes into service gives its projection another generation, and MySQL counts whom it
/// has ended because of a deadlock.
async fn look_at_read_models(url: String, active: Arc<AtomicUsize>, sights: Arc<Sights>) {
    let mut last: Option<(i64, i64)> = None;
    loop {
        let mut connection = databases::mysql(&url).await;
        loop {
            let busy = active.load(Ordering::Relaxed);
            let look = sqlx::query_as(
                "SELECT CAST(COALESCE(SUM(generation), 0) AS SIGNED),
                        CAST((SELECT COALESCE(SUM(sum_error_raised), 0)
                              FROM performance_schema.events_errors_summary_by_user_by_error
                              WHERE user = ? AND error_number = 1213) AS SIGNED)
                 FROM projector_projections",
            );
            let look = look.bind(USER).fetch_one(&mut connection);
            let Ok(Ok((generations, deadlocks))) = timeout(LIMIT, look).await else { break };
            if let Some((before, deadlocks_before)) = last {
                if generations > before && busy > 0 {
                    sights.add(Sight::CutOverUnderFire, 1);
                }
                // A server that was started again counts from nothing.
                sights.add(Sight::Deadlock, u64::from(deadlocks > deadlocks_before));
            }
            last = Some((generations, deadlocks));
            sleep(PERIOD / 5).await;
        }
        sleep(PERIOD).await;
    }
}
