//! The final check of the events, the daemons and the servers.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use harness::Stack;
use sqlx::postgres::PgConnection;
use tokio::time::{sleep, timeout_at};
use uuid::Uuid;

use super::{Campaign, logs, panic};
use crate::account::{Account, lock};
use crate::broker::Management;
use crate::checker;
use crate::coverage::Goal;
use crate::databases;
use crate::findings::{Findings, Wrong};
use crate::fleet::{FRAGILE, NAMES};
use crate::report::Report;
use crate::wire::Inversion;

/// How long one event may take after the last fault.
const SETTLED: Duration = Duration::from_secs(3);
/// How long daemons and queues may take to return to their initial state.
const CALM: Duration = Duration::from_mins(2);

impl Campaign<'_> {
    /// Waits until every event is applied, then compares everything with the event store.
    pub(super) async fn final_check(&mut self) -> Report {
        let account = self.writers.stop().await;
        let took = self.begun.elapsed();
        let stack = self.stack;
        // A rebuild may have to start again.
        let limit = self.arguments.patience + self.arguments.events / 1_000;
        let limit = Instant::now() + Duration::from_secs(limit);
        if timeout_at(limit.into(), caught_up(stack)).await.is_err() {
            self.say("some events are not applied");
        }
        let mut postgres = stack.postgres().await;
        let streams = checker::read_streams(&mut postgres).await.expect("the event store is read");
        // `caught_up` does not cover all tables and the wire: they may differ for a moment.
        let differences = loop {
            let differences = self.compare(&account, &streams).await;
            if differences.is_empty() || Instant::now() > limit {
                break differences;
            }
            sleep(Duration::from_secs(1)).await;
        };
        let mut found = std::mem::take(&mut *lock(&self.findings));
        found.extend(differences);
        given_up(stack, &mut found).await;
        self.compare_servers(&mut found).await;
        self.observer.coverage.add(Goal::Poison, checker::poisoned(&streams).count() as u64);
        for goal in self.uncovered() {
            found.add(Wrong::TooWeak, || format!("not covered: {}", goal.name()));
        }
        for kind in self.undone() {
            found.add(Wrong::TooWeak, || format!("fault never injected: {}", kind.name()));
        }
        for line in logs(stack.folder()).filter_map(panic) {
            found.add(Wrong::Daemon, || line);
        }
        let coverage = self.coverage();
        let seen = lock(&self.wire.seen);
        Report {
            seed: self.arguments.seed,
            took,
            events: streams.values().map(|events| events.len() as u64).sum(),
            streams: streams.len(),
            rolled_back: account.rolled_back().len(),
            unknown: account.unknown.load(Ordering::Relaxed),
            relays: self.arguments.relays(),
            projectors: self.arguments.projectors(),
            published: seen.copies.values().copied().map(u64::from).sum(),
            duplicates: seen.duplicates(),
            inversions: seen.inverted.len(),
            faults: std::mem::take(&mut *lock(&self.tried)),
            coverage,
            findings: found,
        }
    }

    async fn compare(&self, account: &Account, streams: &checker::Streams) -> Findings {
        let mut findings = Findings::default();
        let mut mysql = self.stack.mysql().await;
        let compared = checker::compare(streams, &mut mysql, &mut findings).await;
        compared.expect("the read models are read");
        self.compare_wire(account, streams, &mut findings).await;
        findings
    }

    /// Checks that every event in the store is marked and was published, and that nothing else was.
    async fn compare_wire(
        &self,
        account: &Account,
        streams: &checker::Streams,
        findings: &mut Findings,
    ) {
        let mut postgres = self.stack.postgres().await;
        let outbox: Vec<(Uuid, Option<DateTime<Utc>>)> =
            sqlx::query_as("SELECT event_id, processed_at FROM outbox")
                .fetch_all(&mut postgres)
                .await
                .expect("the outbox is read");
        let marked: HashMap<Uuid, DateTime<Utc>> =
            outbox.into_iter().filter_map(|(id, at)| Some((id, at?))).collect();
        let stored: HashSet<Uuid> = streams.values().flatten().map(|event| event.id).collect();
        let copies = lock(&self.wire.seen).copies.clone();
        let unwatched = lock(&self.harm.unwatched).clone();
        for id in &stored {
            let Some(at) = marked.get(id) else {
                findings.add(Wrong::LeftBehind, || id.to_string());
                continue;
            };
            let excused = unwatched.iter().any(|(from, to)| (from..=to).contains(&at));
            if !excused && !copies.contains_key(id) {
                findings.add(Wrong::Unpublished, || format!("{id} marked at {at}"));
            }
        }
        for id in account.committed().difference(&stored) {
            findings.add(Wrong::NotStored, || id.to_string());
        }
        for id in copies.keys().filter(|id| !stored.contains(id)) {
            findings.add(Wrong::RolledBack, || format!("{id} was published"));
        }
        for id in account.rolled_back().intersection(&stored) {
            findings.add(Wrong::RolledBack, || format!("{id} is stored"));
        }
        let inverted = lock(&self.wire.seen).inverted.clone();
        for id in unreasonable(&mut postgres, &inverted).await {
            findings.add(Wrong::InvertedOnTheWire, || id.to_string());
        }
    }

    /// Checks that daemons and broker are in their initial state, and that events flow in time.
    async fn compare_servers(&self, findings: &mut Findings) {
        let management = Management::of(self.stack.name());
        match management.dead_letters().await {
            Ok(0) => {}
            Ok(dead) => findings.add(Wrong::GivenUp, || format!("{dead} dead letters")),
            Err(error) => findings.add(Wrong::GivenUp, || error),
        }
        let bindings = management.bindings().await.unwrap_or_default();
        for missing in self.bindings.iter().filter(|binding| !bindings.contains(binding)) {
            findings.add(Wrong::NotRecovered, || format!("no binding {}", missing.path));
        }
        let begun = Instant::now();
        loop {
            let unsettled = self.unsettled(&management).await;
            if unsettled.is_empty() {
                break;
            }
            if begun.elapsed() > CALM {
                for what in unsettled {
                    findings.add(Wrong::NotRecovered, || what);
                }
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        match self.recovery(|what| self.say(what)).await {
            Some(took) if took < SETTLED => {}
            took => {
                let what = format!("after the last fault, an event took {took:?}");
                findings.add(Wrong::NotRecovered, || what);
            }
        }
    }

    /// Daemons that are not ready, and queues that are not empty or have no consumer.
    async fn unsettled(&self, management: &Management) -> Vec<String> {
        let queues = management.unsettled().await;
        let mut unsettled = queues.unwrap_or_else(|error| vec![error]);
        for slot in &self.harm.fleet.slots {
            if let Some(why) = slot.unready().await {
                unsettled.push(format!("{} is not ready: {why}", slot.name));
            }
        }
        unsettled
    }
}

/// Waits until every event is published and applied, and no rebuild is unfinished.
async fn caught_up(stack: &Stack) {
    let mut postgres = databases::postgres(&stack.postgres_url).await;
    let mut mysql = databases::mysql(&stack.mysql_url).await;
    loop {
        let (stored, accounts, pending): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM events WHERE stream_id NOT LIKE 'fragile-%'),
                    (SELECT count(*) FROM events WHERE stream_id LIKE 'account-%'),
                    (SELECT count(*) FROM outbox WHERE processed_at IS NULL)",
        )
        .fetch_one(&mut postgres)
        .await
        .expect("the event store is read");
        let (ledger, chain, counter, rebuilds): (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT CAST((SELECT COALESCE(SUM(applied), 0) FROM ledger_streams) AS SIGNED),
                    CAST((SELECT COALESCE(SUM(applied), 0) FROM chain) AS SIGNED),
                    CAST((SELECT COALESCE(SUM(events), 0) FROM counter) AS SIGNED),
                    (SELECT count(*) FROM projector_rebuilds
                     WHERE state NOT IN ('done', 'rolled_back', 'old_dropped', 'cancelled', 'failed'))",
        )
        .fetch_one(&mut mysql)
        .await
        .expect("the read models are read");
        if (ledger, chain, counter, pending, rebuilds) == (stored, accounts, accounts, 0, 0) {
            // The other projections have no counts to compare; the same relays feed them.
            sleep(Duration::from_secs(2)).await;
            return;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// The events whose first copy came after a later one of their stream without a reason. A reason is that the
/// broker refused an event of the stream shortly before.
async fn unreasonable(postgres: &mut PgConnection, inverted: &[Inversion]) -> Vec<Uuid> {
    let (events, at): (Vec<Uuid>, Vec<DateTime<Utc>>) =
        inverted.iter().map(|inversion| (inversion.event_id, inversion.at)).unzip();
    let find = sqlx::query_scalar(
        "SELECT event_id
         FROM unnest($1::uuid[], $2::timestamptz[]) AS late (event_id, at) JOIN outbox USING (event_id)
         WHERE NOT EXISTS (
             SELECT FROM chaos_holds
             WHERE stream_key = stream_id AND chaos_holds.at > late.at - interval '2 min')",
    );
    find.bind(events).bind(at).fetch_all(postgres).await.expect("the outbox is read")
}

/// Adds everything that waits for a person.
async fn given_up(stack: &Stack, findings: &mut Findings) {
    let mut mysql = stack.mysql().await;
    for name in NAMES.iter().filter(|name| **name != FRAGILE) {
        let parked = sqlx::AssertSqlSafe(format!(
            "SELECT CAST(COALESCE(SUM(parked), 0) AS SIGNED) FROM {name}__streams"
        ));
        let parked: i64 = sqlx::query_scalar(parked).fetch_one(&mut mysql).await.expect("a count");
        if parked > 0 {
            findings.add(Wrong::GivenUp, || format!("{parked} streams of {name} are parked"));
        }
    }
    let stopped: Vec<(String, String)> = sqlx::query_as(
        "SELECT name, paused_reason FROM projector_projections WHERE paused_reason IS NOT NULL
         UNION ALL
         SELECT projection, COALESCE(reason, '') FROM projector_rebuilds WHERE state = 'failed'",
    )
    .fetch_all(&mut mysql)
    .await
    .expect("the projections are read");
    for (name, reason) in stopped {
        findings.add(Wrong::GivenUp, || format!("{name}: {reason}"));
    }
}
