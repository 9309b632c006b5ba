//! A campaign: daemons and writers run, faults are injected, and a final check compares everything.

mod final_check;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::Utc;
use clap::ValueEnum;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use harness::{Stack, root};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Arguments;
use crate::account::lock;
use crate::broker::{Binding, Management};
use crate::coverage::{Goal, Observer};
use crate::faults::{Fault, Kind};
use crate::findings::{Findings, Wrong};
use crate::fleet::Fleet;
use crate::inject::{Harm, Unharmed};
use crate::probe::recovery;
use crate::report::{Report, Tried};
use crate::schedule;
use crate::wire::Wire;
use crate::writers::Writers;

/// How many rounds of extra faults are tried for goals that are not covered.
const PROVOCATIONS: u64 = 5;
/// How many events are appended in such a round.
const PROVOKING_EVENTS: u64 = 5_000;

/// Runs a campaign.
pub(crate) async fn run(arguments: &Arguments) -> Report {
    let mut report = None;
    Stack::run(async |stack| {
        let campaign = Campaign::start(stack, arguments).await;
        let result = campaign.run().await;
        keep_logs(stack.folder());
        report = Some(result);
    })
    .await;
    report.expect("a campaign has a result")
}

struct Campaign<'s> {
    stack: &'s Stack,
    arguments: &'s Arguments,
    begun: Instant,
    harm: Arc<Harm>,
    writers: Writers,
    wire: Wire,
    observer: Observer,
    /// The bindings of the exchange before the first fault.
    bindings: Vec<Binding>,
    /// The number of faults that last, or whose recovery is not complete; rebuilds do not count.
    active: Arc<AtomicUsize>,
    tried: Mutex<BTreeMap<Kind, Tried>>,
    findings: Arc<Mutex<Findings>>,
}

impl<'s> Campaign<'s> {
    async fn start(stack: &'s Stack, arguments: &'s Arguments) -> Self {
        stack.projector(Path::new("tests/chaos/projections")).arg("migrate").succeed().await;
        note_holds(stack).await;
        let wire = Wire::watch(&stack.amqp_url).await;
        let fleet = Fleet::start(stack, arguments).await;
        let harm = Arc::new(Harm::new(stack, fleet, &wire));
        let active = Arc::<AtomicUsize>::default();
        let observer = Observer::start(&harm, &stack.mysql_url, &active);
        Self {
            stack,
            arguments,
            begun: Instant::now(),
            harm,
            writers: Writers::start(&stack.postgres_url, arguments.seed, arguments.events),
            wire,
            observer,
            bindings: Vec::new(),
            active,
            tried: Mutex::default(),
            findings: Arc::default(),
        }
    }

    async fn run(mut self) -> Report {
        println!("[    0.00] it is {}", Utc::now().format("%FT%T%.3fZ"));
        let mut guard = JoinSet::new();
        guard.spawn(revive(Arc::clone(&self.harm), Arc::clone(&self.findings)));
        self.say("checking that events flow before the first fault");
        self.writers.allow(200.min(self.arguments.events));
        if self.recovery(|what| self.say(what)).await.is_none() {
            self.found(Wrong::NotRecovered, "events did not flow before the first fault");
        }
        let management = Management::of(self.stack.name());
        self.bindings = management.bindings().await.expect("the bindings are read");
        let Arguments { seed, faults, .. } = self.arguments;
        self.inflict_all(schedule::draw(*seed, 1, *faults, &self.kinds())).await;
        self.provoke().await;
        self.writers.allow(self.arguments.events);
        while self.writers.account.appended() < self.arguments.events {
            sleep(Duration::from_millis(100)).await;
        }
        self.say("the faults are over");
        self.final_check().await
    }

    /// The requested kinds of faults that are possible here.
    fn kinds(&self) -> Vec<Kind> {
        let only = &self.arguments.only;
        let wanted = |kind: &&Kind| only.is_empty() || only.contains(kind);
        let possible = |kind: &&Kind| {
            let possible = **kind != Kind::FillDisk || self.harm.can_fill_disks();
            if !possible {
                self.say("no disk is filled: only root can give each server its own file system");
            }
            possible
        };
        Kind::value_variants().iter().filter(wanted).filter(possible).copied().collect()
    }

    fn say(&self, what: &str) {
        say(self.begun, what);
    }

    fn found(&self, wrong: Wrong, what: &str) {
        lock(&self.findings).add(wrong, || what.to_owned());
    }

    async fn recovery(&self, tell: impl Fn(&str)) -> Option<Duration> {
        recovery(self.stack, Duration::from_secs(self.arguments.patience), tell).await
    }

    /// Injects faults in the order of the schedule, several at a time.
    async fn inflict_all(&self, schedule: Vec<Fault>) {
        let Arguments { faults, events, at_once, .. } = self.arguments;
        let mut under_way = FuturesUnordered::new();
        for fault in schedule {
            self.writers.allow(events * fault.number as u64 / *faults as u64);
            while under_way.len() >= *at_once {
                under_way.next().await;
            }
            under_way.push(self.inflict(fault));
            let mut pause = pin!(sleep(fault.pause));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(()) = under_way.next() => {}
                }
            }
        }
        while under_way.next().await.is_some() {}
    }

    /// Injects more faults: those not injected yet, and those that usually cause what is not covered yet.
    async fn provoke(&self) {
        let Arguments { seed, faults, .. } = self.arguments;
        let mut next = faults + 1;
        for round in 1..=PROVOCATIONS {
            let mut kinds = self.undone();
            for goal in self.uncovered().filter(|it| !it.provoked_by().is_empty()) {
                self.say(&format!("not covered yet: {}", goal.name()));
                kinds.extend(goal.provoked_by());
            }
            if kinds.is_empty() {
                return;
            }
            let more = schedule::draw(seed.wrapping_add(round), next, 3 * kinds.len(), &kinds);
            next += more.len();
            // Most goals need events.
            self.writers.allow(self.writers.account.appended() + PROVOKING_EVENTS);
            self.inflict_all(more).await;
        }
    }

    /// Injects one fault, and waits until events flow again.
    async fn inflict(&self, fault: Fault) {
        let turn = self.harm.turn(&fault).await;
        let active = usize::from(!fault.kind.is_rebuild());
        self.active.fetch_add(active, Ordering::Relaxed);
        let target = self.harm.target(&fault);
        self.say(&format!("{fault}{target}: {:.1} s", fault.lasts.as_secs_f64()));
        let done = self.harm.inflict(&fault).await;
        drop(turn);
        if let Err(unharmed) = done {
            self.note_unharmed(&fault, unharmed);
        } else {
            self.say(&format!("{fault}: ended"));
            self.see_recovery(&fault).await;
        }
        self.active.fetch_sub(active, Ordering::Relaxed);
    }

    fn note_unharmed(&self, fault: &Fault, unharmed: Unharmed) {
        let why = match unharmed {
            Unharmed::Missed(why) => why,
            Unharmed::Disobeyed(why) => {
                self.found(Wrong::Daemon, &format!("{fault}: {why}"));
                why
            }
        };
        self.say(&format!("{fault}: missed: {why}"));
        lock(&self.tried).entry(fault.kind).or_default().missed += 1;
    }

    async fn see_recovery(&self, fault: &Fault) {
        let tell = |what: &str| self.say(&format!("{fault}: {what}"));
        let recovered = self.recovery(tell).await;
        let mut tried = lock(&self.tried);
        let tried = tried.entry(fault.kind).or_default();
        tried.done += 1;
        if let Some(took) = recovered {
            tried.recoveries.push(took);
            self.say(&format!("{fault}: recovered within {:.2} s", took.as_secs_f64()));
        } else {
            let what = format!("{fault}: events do not flow after {} s", self.arguments.patience);
            self.say(&what);
            self.found(Wrong::NotRecovered, &what);
        }
    }

    /// Kinds of faults that a whole campaign must inject, and this one has not.
    fn undone(&self) -> Vec<Kind> {
        let tried = lock(&self.tried);
        let undone = |kind: &Kind| tried.get(kind).is_none_or(|tried| tried.done == 0);
        let whole = self.arguments.only.is_empty() && self.arguments.faults >= schedule::ROUND;
        self.kinds().into_iter().filter(undone).filter(|_| whole).collect()
    }

    fn coverage(&self) -> BTreeMap<Goal, u64> {
        let mut counts = self.observer.coverage.counts();
        counts.insert(Goal::Duplicate, lock(&self.wire.seen).duplicates());
        counts.insert(Goal::UnknownCommit, self.harm.fleet.unknown_commits() as u64);
        for (goal, message) in
            [(Goal::LaneTakenOver, "taking over lanes"), (Goal::Silence, "gave no answer")]
        {
            let times = |log| read(log).matches(message).count() as u64;
            counts.insert(goal, logs(self.stack.folder()).map(times).sum());
        }
        counts
    }

    /// The goals that a whole campaign must cover, and this one has not.
    fn uncovered(&self) -> impl Iterator<Item = Goal> {
        let counts = self.coverage();
        let whole = self.arguments.only.is_empty();
        let uncovered =
            move |goal: &Goal| whole && counts.get(goal).is_none_or(|count| *count == 0);
        Goal::ALL.into_iter().filter(uncovered)
    }
}

fn say(begun: Instant, what: &str) {
    println!("[{:8.2}] {what}", begun.elapsed().as_secs_f64());
}

/// Restarts daemons that ended by themselves, as a container runtime would. None should end.
async fn revive(harm: Arc<Harm>, findings: Arc<Mutex<Findings>>) {
    loop {
        for (number, slot) in harm.fleet.slots.iter().enumerate() {
            let Some(_free) = harm.is_free(number) else { continue };
            if slot.revive().await {
                lock(&findings).add(Wrong::Daemon, || format!("{} ended by itself", slot.name));
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Makes PostgreSQL record when a stream begins to wait because the broker refused one of its events.
async fn note_holds(stack: &Stack) {
    let note = sqlx::raw_sql(
        "CREATE TABLE chaos_holds (stream_key text NOT NULL, at timestamptz NOT NULL);
         CREATE INDEX ON chaos_holds (stream_key);
         CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO chaos_holds VALUES (NEW.stream_key, clock_timestamp());
             RETURN NULL;
         END $$;
         CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON outbox_holds
             FOR EACH ROW EXECUTE FUNCTION chaos_note()",
    );
    note.execute(&mut stack.postgres().await).await.expect("holds are noted");
}

fn logs(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log"))
}

fn read(log: PathBuf) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

fn panic(log: PathBuf) -> Option<String> {
    read(log).lines().find(|line| line.contains("panicked at")).map(str::to_owned)
}

fn keep_logs(folder: &Path) {
    let to = root().join("target/chaos");
    drop(fs::remove_dir_all(&to));
    fs::create_dir_all(&to).expect("a folder for logs");
    for log in logs(folder) {
        if let Some(name) = log.file_name() {
            fs::copy(&log, to.join(name)).expect("a log is kept");
        }
    }
    println!("the logs of the daemons are in {}", to.display());
}
