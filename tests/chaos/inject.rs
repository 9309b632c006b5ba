//! Injects faults and undoes them.

mod sessions;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use harness::{Cut, Mode, Proxy, Stack};
use rustix::process::Signal;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::time::{sleep, timeout};

use crate::account::lock;
use crate::broker::{Management, control};
use crate::faults::{Fault, Kind, Server};
use crate::fleet::Fleet;
use crate::servers::Servers;
use crate::wire::Wire;

/// How long to wait for the COMMIT or confirm at which to cut.
const CUT_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait for a relay to publish.
const AIM_LIMIT: Duration = Duration::from_secs(1);
/// Longer than undoing any fault takes.
const UNDO_LIMIT: Duration = Duration::from_mins(2);
/// A rebuild that takes longer is killed.
const REBUILD_LIMIT: Duration = Duration::from_secs(20);
/// How long to wait until a server has used the last space of its file system.
const FULL_LIMIT: Duration = Duration::from_secs(10);
/// A daemon ends within 10 s of SIGTERM; a busy machine needs a little longer.
const TERM_LIMIT: Duration = Duration::from_secs(12);
/// The pause between two looks at the bindings while they are removed.
const BINDINGS_PAUSE: Duration = Duration::from_millis(100);
/// How long after its confirm an event may be marked.
const MARK_LIMIT: TimeDelta = TimeDelta::seconds(7);

/// A target that at most one fault affects at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Daemon(usize),
    Way(usize, Server),
    Server(Server),
    Rebuild,
}

/// Why a fault was not injected.
pub(crate) enum Unharmed {
    /// Its target was down or did not react.
    Missed(String),
    /// A daemon did not end as it must.
    Disobeyed(String),
}

impl From<String> for Unharmed {
    fn from(why: String) -> Self {
        Self::Missed(why)
    }
}

impl From<&str> for Unharmed {
    fn from(why: &str) -> Self {
        Self::Missed(why.to_owned())
    }
}

/// The targets of all faults.
pub(crate) struct Harm {
    pub(crate) fleet: Fleet,
    servers: Servers,
    management: Management,
    postgres_url: String,
    mysql_url: String,
    wire_pause: Arc<AtomicBool>,
    /// Times in which a message may have reached a projection but not the wire queue: a projector that
    /// connects binds its queues, even while all bindings are removed.
    pub(crate) unwatched: Mutex<Vec<(DateTime<Utc>, DateTime<Utc>)>>,
    turns: Mutex<BTreeMap<Target, Arc<Turn<()>>>>,
}

impl Harm {
    pub(crate) fn new(stack: &Stack, fleet: Fleet, wire: &Wire) -> Self {
        Self {
            fleet,
            servers: Servers::of(stack),
            management: Management::of(stack.name()),
            postgres_url: stack.postgres_url.clone(),
            mysql_url: stack.mysql_url.clone(),
            wire_pause: Arc::clone(&wire.pause),
            unwatched: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// Waits until no other fault affects the targets of this one.
    pub(crate) async fn turn(&self, fault: &Fault) -> Vec<OwnedMutexGuard<()>> {
        let mut targets = self.targets(fault);
        // Sorted, so that two faults do not wait for each other.
        targets.sort();
        let mut guards = Vec::new();
        for target in targets {
            guards.push(self.turn_of(target).lock_owned().await);
        }
        guards
    }

    /// A guard if no fault affects a daemon, so that it may be restarted.
    pub(crate) fn is_free(&self, slot: usize) -> Option<OwnedMutexGuard<()>> {
        self.turn_of(Target::Daemon(slot)).try_lock_owned().ok()
    }

    fn turn_of(&self, target: Target) -> Arc<Turn<()>> {
        Arc::clone(lock(&self.turns).entry(target).or_default())
    }

    fn targets(&self, fault: &Fault) -> Vec<Target> {
        use Kind as K;
        match (fault.kind, fault.server) {
            (K::KillRelay | K::StopRelay | K::FreezeRelay, _) => {
                vec![Target::Daemon(self.relay(fault))]
            }
            (K::KillProjector | K::StopProjector | K::FreezeProjector, _) => {
                vec![Target::Daemon(self.projector(fault))]
            }
            (kind, _) if kind.is_rebuild() => vec![Target::Rebuild],
            (
                K::Reset
                | K::HalfClose
                | K::BlackHole
                | K::BlackHoleOneWay
                | K::Latency
                | K::Slice
                | K::CutAtCommit
                | K::CutAtCommitAnswer
                | K::CutAtConfirm,
                Some(server),
            ) => {
                self.ways(fault, server).into_iter().map(|slot| Target::Way(slot, server)).collect()
            }
            (_, Some(server)) => vec![Target::Server(server)],
            (_, None) => Vec::new(),
        }
    }

    /// The names of the targets, as far as kind and server do not determine them.
    pub(crate) fn target(&self, fault: &Fault) -> String {
        let name = |target: &Target| match *target {
            Target::Daemon(slot) | Target::Way(slot, _) => {
                Some(self.fleet.slots[slot].name.clone())
            }
            Target::Server(_) => None,
            Target::Rebuild => Some(Fleet::rebuilt(fault.which).to_owned()),
        };
        let names: Vec<String> = self.targets(fault).iter().filter_map(name).collect();
        if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
    }

    /// Whether the servers have file systems of their own.
    pub(crate) fn can_fill_disks(&self) -> bool {
        self.servers.can_be_filled()
    }

    fn relay(&self, fault: &Fault) -> usize {
        let relays = self.fleet.relays();
        relays.start + fault.which % relays.len()
    }

    fn projector(&self, fault: &Fault) -> usize {
        let projectors = self.fleet.projectors();
        projectors.start + fault.which % projectors.len()
    }

    /// The daemons whose connection to a server a fault affects.
    fn ways(&self, fault: &Fault, server: Server) -> Vec<usize> {
        let users = match fault.kind {
            // Only relays receive confirms and commit in PostgreSQL.
            Kind::CutAtConfirm => self.fleet.relays(),
            Kind::CutAtCommit | Kind::CutAtCommitAnswer if server == Server::PostgreSql => {
                self.fleet.relays()
            }
            _ => self.fleet.users(server),
        };
        if fault.everybody {
            users.collect()
        } else {
            vec![users.start + fault.which % users.len()]
        }
    }

    /// Injects a fault for its duration, then undoes it.
    pub(crate) async fn inflict(&self, fault: &Fault) -> Result<(), Unharmed> {
        use Kind as K;
        match (fault.kind, fault.server) {
            (K::KillRelay | K::StopRelay | K::FreezeRelay, _) => {
                self.daemon(fault, self.relay(fault)).await
            }
            (K::KillProjector | K::StopProjector | K::FreezeProjector, _) => {
                self.daemon(fault, self.projector(fault)).await
            }
            (kind, _) if kind.is_rebuild() => self.rebuild(fault).await,
            (K::CutAtCommit | K::CutAtCommitAnswer | K::CutAtConfirm, Some(server)) => {
                Ok(self.cut(fault, server).await?)
            }
            (
                K::Reset | K::HalfClose | K::BlackHole | K::BlackHoleOneWay | K::Latency | K::Slice,
                Some(server),
            ) => {
                self.disturb(fault, server).await;
                Ok(())
            }
            (K::RestartServer | K::KillServer | K::FreezeServer | K::FillDisk, Some(server)) => {
                Ok(self.server(fault, server).await?)
            }
            (K::EndSessions, Some(Server::PostgreSql)) => Ok(self.end_postgres_sessions().await?),
            (K::EndSessions, _) => Ok(self.end_mysql_sessions().await?),
            (K::Deadlock, _) => Ok(self.deadlock(fault.lasts).await?),
            (K::HoldRows, _) => Ok(self.hold_rows(fault).await?),
            _ => Ok(self.broker(fault).await?),
        }
    }

    async fn daemon(&self, fault: &Fault, slot: usize) -> Result<(), Unharmed> {
        let slot = &self.fleet.slots[slot];
        let away = "it was not running";
        if let (Kind::KillRelay | Kind::FreezeRelay, Some(way)) =
            (fault.kind, slot.way(Server::RabbitMq))
        {
            // Wait until the relay holds lanes and has published events that it has not marked.
            drop(timeout(AIM_LIMIT, way.confirm()).await);
        }
        match fault.kind {
            Kind::FreezeRelay | Kind::FreezeProjector => {
                let stop = async |daemon: &mut harness::Daemon| daemon.signal(Signal::STOP);
                slot.with(stop).await.ok_or(away)?;
                sleep(fault.lasts).await;
                slot.with(async |daemon| daemon.signal(Signal::CONT)).await;
            }
            Kind::StopRelay | Kind::StopProjector => {
                let ended = slot.with(async |daemon| daemon.terminate().await).await.ok_or(away)?;
                slot.start().await;
                let (status, took) = ended;
                if !status.success() || took > TERM_LIMIT {
                    let why = format!("{} ended {took:?} after SIGTERM: {status}", slot.name);
                    return Err(Unharmed::Disobeyed(why));
                }
            }
            _ => {
                slot.with(async |daemon| daemon.kill().await).await.ok_or(away)?;
                sleep(fault.lasts / 4).await;
                slot.start().await;
            }
        }
        Ok(())
    }

    /// Runs a rebuild. One that takes too long is killed; any projector continues it.
    async fn rebuild(&self, fault: &Fault) -> Result<(), Unharmed> {
        let mut rebuild = self.fleet.rebuild(fault.which).start();
        let begun = Instant::now();
        let limit = match fault.kind {
            Kind::Rebuild => REBUILD_LIMIT,
            // With little history, a rebuild is short.
            _ => fault.lasts / 8,
        };
        while rebuild.running().is_some() && begun.elapsed() < limit {
            sleep(Duration::from_millis(50)).await;
        }
        match fault.kind {
            Kind::Rebuild if rebuild.running().is_none() => return Ok(()),
            _ if rebuild.running().is_none() => return Err("it had already ended".into()),
            Kind::FreezeRebuild => {
                rebuild.signal(Signal::STOP);
                sleep(fault.lasts).await;
                rebuild.signal(Signal::CONT);
                sleep(fault.lasts).await;
            }
            Kind::StopRebuild => {
                let (status, took) = rebuild.terminate().await;
                if took > TERM_LIMIT {
                    let why = format!("a rebuild ended {took:?} after SIGTERM: {status}");
                    return Err(Unharmed::Disobeyed(why));
                }
                return Ok(());
            }
            _ => {}
        }
        if rebuild.running().is_some() {
            rebuild.kill().await;
        }
        Ok(())
    }

    async fn disturb(&self, fault: &Fault, server: Server) {
        let mode = match fault.kind {
            Kind::Reset => Mode::Reset,
            Kind::HalfClose => Mode::HalfClose(fault.side),
            Kind::BlackHole => Mode::BlackHole,
            Kind::BlackHoleOneWay => Mode::BlackHoleTowards(fault.side),
            Kind::Latency => Mode::Latency(fault.lasts / 20),
            _ => Mode::Slice(1 + fault.which % 7),
        };
        let proxies: Vec<&Proxy> = self.proxies(fault, server);
        for proxy in &proxies {
            proxy.set(mode);
        }
        sleep(fault.lasts).await;
        for proxy in &proxies {
            proxy.set(Mode::Pass);
        }
    }

    async fn cut(&self, fault: &Fault, server: Server) -> Result<(), String> {
        let cut = match fault.kind {
            Kind::CutAtCommit => Cut::Commit,
            Kind::CutAtCommitAnswer => Cut::CommitAnswer,
            _ => Cut::Confirm,
        };
        let proxies = self.proxies(fault, server);
        let before: usize = proxies.iter().map(|proxy| proxy.cuts()).sum();
        for proxy in &proxies {
            proxy.cut_at(cut);
        }
        let begun = Instant::now();
        while proxies.iter().map(|proxy| proxy.cuts()).sum::<usize>() < before + proxies.len() {
            if begun.elapsed() > CUT_LIMIT {
                for proxy in &proxies {
                    proxy.cut_nowhere();
                }
                return Err("no COMMIT or confirm came in time".to_owned());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn proxies(&self, fault: &Fault, server: Server) -> Vec<&Proxy> {
        let ways = self.ways(fault, server);
        ways.into_iter().filter_map(|slot| self.fleet.slots[slot].way(server)).collect()
    }

    async fn server(&self, fault: &Fault, server: Server) -> Result<(), String> {
        let mut done = Ok(());
        match fault.kind {
            Kind::FreezeServer => {
                self.servers.signal(server, Signal::STOP)?;
                sleep(fault.lasts).await;
                self.servers.signal(server, Signal::CONT)?;
            }
            Kind::FillDisk => {
                self.servers.fill(server).await?;
                let begun = Instant::now();
                while !self.servers.is_full(server) && begun.elapsed() < FULL_LIMIT {
                    sleep(Duration::from_millis(20)).await;
                }
                let mut was_full = self.servers.is_full(server);
                sleep(fault.lasts).await;
                was_full |= self.servers.is_full(server);
                self.servers.empty(server).await?;
                if server == Server::RabbitMq {
                    // The log of its quorum queues does not recover without a restart.
                    drop(self.servers.stop(server).await);
                    self.servers.start(server).await;
                }
                if !was_full {
                    done = Err("it did not fill its disk".to_owned());
                }
            }
            Kind::KillServer => {
                self.servers.kill(server).await?;
                self.servers.start(server).await;
            }
            _ => {
                self.servers.stop(server).await?;
                self.servers.start(server).await;
            }
        }
        self.servers.ensure(server).await;
        done
    }

    async fn broker(&self, fault: &Fault) -> Result<(), String> {
        let management = &self.management;
        match fault.kind {
            Kind::MemoryAlarm => {
                control(&["set_vm_memory_high_watermark", "0.00001"]).await?;
                sleep(fault.lasts).await;
                undo(async || control(&["set_vm_memory_high_watermark", "0.6"]).await).await
            }
            Kind::DiskAlarm => {
                control(&["set_disk_free_limit", "1000GB"]).await?;
                sleep(fault.lasts).await;
                undo(async || control(&["set_disk_free_limit", "50MB"]).await).await
            }
            Kind::RemoveBindings => self.remove_bindings(fault).await,
            Kind::RefuseMessages => {
                management.refuse().await?;
                // Without the pause, it accepts a message whenever one was read.
                self.wire_pause.store(fault.which.is_multiple_of(2), Ordering::Relaxed);
                sleep(fault.lasts).await;
                self.wire_pause.store(false, Ordering::Relaxed);
                undo(async || management.accept_again().await).await
            }
            kind => {
                let queues = management.queues().await?;
                let queue = &queues[fault.which % queues.len()];
                if kind == Kind::DeleteQueue {
                    management.delete_queue(queue).await
                } else {
                    management.purge_queue(queue).await
                }
            }
        }
    }

    /// Removes all bindings, so that the broker returns messages, or those of one projection, so that it
    /// does not receive messages that the broker has confirmed.
    async fn remove_bindings(&self, fault: &Fault) -> Result<(), String> {
        let management = &self.management;
        let mut bindings = management.bindings().await?;
        let is_partial = fault.which % 2 == 1 && bindings.len() > 1;
        if is_partial {
            // The first binding is that of the wire queue.
            let chosen = bindings[1 + fault.which % (bindings.len() - 1)].path.clone();
            bindings.retain(|binding| binding.path == chosen);
        }
        let unbound = management.unbind(&bindings).await;
        let ends = Instant::now() + fault.lasts;
        // From the moment at which a projector declares its bindings again, the wire queue misses messages
        // that are published.
        let mut unwatched = None;
        while Instant::now() < ends {
            let before = Utc::now();
            let is_bound = !management.bindings().await.is_ok_and(|bound| bound.is_empty());
            if !is_partial && is_bound {
                unwatched = unwatched.or(Some(before - BINDINGS_PAUSE));
            }
            sleep(BINDINGS_PAUSE).await;
        }
        undo(async || management.bind(&bindings).await).await?;
        if let Some(from) = unwatched {
            lock(&self.unwatched).push((from, Utc::now() + MARK_LIMIT));
        }
        unbound
    }
}

/// Tries until the fault is undone; otherwise nothing could recover.
async fn undo(mut act: impl AsyncFnMut() -> Result<(), String>) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match act().await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > UNDO_LIMIT => return Err(error),
            Err(_) => sleep(Duration::from_millis(500)).await,
        }
    }
}
