//! Building a read model anew, beside the live one, and putting it in its place.
//!
//! The new tables lie in another database under the same names, so that everything that applies events
//! works there as it is. At the end all tables of the projection, its bookkeeping included, are swapped
//! at once, while no batch is under way.
//!
//! **Invariant:** whatever is interrupted, either the old tables are in service or the new ones, all of
//! them; and what the tables in service lack is found between their own checkpoint and the event store.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use domain_events::{Event, Position, StreamId, StreamVersion};
use event_store::Wanted;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::apply::{Breaker, ReadModel, apply};
use crate::commands::say;
use crate::history::History;
use crate::mysql::{self, Databases, Passage, Rebuild, RebuildState, Session, Swap, all_tables};
use crate::projection::Projection;
use crate::sequence::Head;
use crate::trouble::Trouble;

/// Events of a page of history, at most.
const PAGE: u32 = 2_000;
/// How long to wait for writers before saying whom.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// Streams, and events of each, that are read at once.
pub(crate) const STREAMS_AT_ONCE: usize = 100;
pub(crate) const EVENTS_AT_ONCE: u32 = 100;
/// When so few positions are left, the new tables are near enough.
const NEAR: i64 = 2_000;
/// How often to come nearer before the gate is closed all the same.
const ROUNDS: u32 = 10;
/// The longest pause between two attempts to swap.
const SWAP_PAUSE: Duration = Duration::from_secs(2);
/// How often progress is told.
const TELL: Duration = Duration::from_secs(1);

/// A rebuild at work.
pub(crate) struct Rebuilder {
    pub(crate) projection: Projection,
    pub(crate) mysql: mysql::Options,
    pub(crate) store: event_store::Options,
    pub(crate) databases: Databases,
    /// Events a second at most; 0 for as many as it goes.
    pub(crate) throttle: u32,
}

impl Rebuilder {
    fn model(&self) -> ReadModel {
        ReadModel::new(self.projection.clone())
    }

    fn tables(&self, model: &ReadModel) -> Vec<String> {
        all_tables(&self.projection, &model.ledger)
    }

    /// Builds the read model anew and puts it in service; goes on with what was interrupted.
    pub(crate) async fn rebuild(&self, allow_parked: bool) -> Result<(), Trouble> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        session.require_tables(&self.projection, &live.ledger).await?;
        self.own(&mut session, &live).await?;
        let hash = &self.projection.definition_hash;
        let last = session.last_rebuild(&live.ledger).await?;
        let tables = self.tables(&live);
        let cut = last.as_ref().is_some_and(|last| last.state == RebuildState::CuttingOver);
        if cut && self.is_swapped(&mut session, &tables, &self.databases.new).await? {
            say("the new tables are in service already; what came meanwhile is applied");
            let (mut batch, _gate) = session.begin(&live.ledger, Passage::Alone).await?;
            batch.next_generation(&self.projection).await?;
            batch.commit().await?;
        } else {
            let goes_on = last.is_some_and(|last| {
                matches!(last.state, RebuildState::Building | RebuildState::CuttingOver)
                    && last.definition_hash == *hash
            });
            if !goes_on {
                self.begin(&mut session, &live, &tables).await?;
            }
            let (shadow, mut new) = self.shadow(&mut session, &self.databases.new).await?;
            self.catch_up(&mut new, &shadow).await?;
            let (parked, _) = new.count_parked(&shadow.ledger).await?;
            if parked > 0 && !allow_parked {
                let first = new.parked(&shadow.ledger).await?.into_iter().next();
                let reason = first.map_or_else(String::new, |first| first.reason);
                return Err(Trouble::ParkedInRebuild { parked, reason });
            }
            self.cut_over(
                &mut session,
                &live,
                (&mut new, &shadow),
                &self.databases.new,
                &self.databases.old,
            )
            .await?;
        }
        self.level(&mut session, &live).await?;
        self.note(&mut session, &live, RebuildState::Done).await?;
        session.close().await;
        Ok(())
    }

    /// Puts the tables of before back in service.
    pub(crate) async fn roll_back(&self) -> Result<(), Trouble> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        self.own(&mut session, &live).await?;
        let tables = self.tables(&live);
        if session.count_tables(&self.databases.old, &tables).await? < tables.len() {
            return Err(Trouble::NoGeneration { projection: self.projection.name.clone() });
        }
        session.drop_tables(&self.databases.new, &tables).await?;
        let (shadow, mut old) = self.shadow(&mut session, &self.databases.old).await?;
        self.catch_up(&mut old, &shadow).await?;
        self.cut_over(
            &mut session,
            &live,
            (&mut old, &shadow),
            &self.databases.old,
            &self.databases.new,
        )
        .await?;
        self.level(&mut session, &live).await?;
        self.note(&mut session, &live, RebuildState::RolledBack).await?;
        session.close().await;
        Ok(())
    }

    /// Gives up a rebuild that was interrupted.
    pub(crate) async fn cancel(&self) -> Result<(), Trouble> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        self.own(&mut session, &live).await?;
        let last = session.last_rebuild(&live.ledger).await?;
        let tables = self.tables(&live);
        let unfinished = |last: Rebuild| {
            matches!(last.state, RebuildState::Building | RebuildState::CuttingOver)
        };
        if !last.is_some_and(unfinished)
            || self.is_swapped(&mut session, &tables, &self.databases.new).await?
        {
            return Err(Trouble::NothingToCancel { projection: live.name().to_owned() });
        }
        session.drop_tables(&self.databases.new, &tables).await?;
        self.note(&mut session, &live, RebuildState::Cancelled).await?;
        session.close().await;
        Ok(())
    }

    /// Drops the tables that a rebuild or a rollback has taken out of service.
    pub(crate) async fn drop_old(&self) -> Result<(), Trouble> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        self.own(&mut session, &live).await?;
        let last = session.last_rebuild(&live.ledger).await?;
        let tables = self.tables(&live);
        session.drop_tables(&self.databases.old, &tables).await?;
        if last.is_some_and(|last| last.state == RebuildState::RolledBack) {
            session.drop_tables(&self.databases.new, &tables).await?;
        }
        session.close().await;
        Ok(())
    }

    /// Only one rebuild of a projection at a time; until the session ends.
    pub(crate) async fn own(&self, session: &mut Session, live: &ReadModel) -> Result<(), Trouble> {
        if session.try_own(&format!("{}.rebuild", live.name())).await? {
            Ok(())
        } else {
            Err(Trouble::AnotherRebuild { projection: live.name().to_owned() })
        }
    }

    async fn note(
        &self,
        session: &mut Session,
        live: &ReadModel,
        state: RebuildState,
    ) -> Result<(), Trouble> {
        let definition_hash = self.projection.definition_hash.clone();
        Ok(session.note_rebuild(&live.ledger, &Rebuild { state, definition_hash }).await?)
    }

    async fn begin(
        &self,
        session: &mut Session,
        live: &ReadModel,
        tables: &[String],
    ) -> Result<(), Trouble> {
        session.drop_tables(&self.databases.new, tables).await?;
        self.note(session, live, RebuildState::Building).await
    }

    /// The projection in another database, with its tables.
    pub(crate) async fn shadow(
        &self,
        session: &mut Session,
        database: &str,
    ) -> Result<(ReadModel, Session), Trouble> {
        let (_, mut shadow) = session.shadow(&self.mysql, database).await?;
        shadow.migrate().await?;
        let model = self.model();
        shadow.migrate_projection(&self.projection, &model.ledger).await?;
        model.prepare(&mut shadow).await?;
        Ok((model, shadow))
    }

    /// Applies the history until there is hardly anything left.
    pub(crate) async fn catch_up(
        &self,
        session: &mut Session,
        model: &ReadModel,
    ) -> Result<(), Trouble> {
        let mut history = History::new(self.store.clone());
        for _ in 0..ROUNDS {
            let until = loop {
                match history.decided(FENCE_PATIENCE).await? {
                    Ok(until) => break until,
                    Err(writers) => say(&format!("waiting: {writers}")),
                }
            };
            let checkpoint = session.checkpoint(&model.ledger).await?;
            let after = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
            if after >= until {
                return Ok(());
            }
            if checkpoint.is_none() {
                session.begin_replay(&model.ledger, until).await?;
            }
            self.replay(session, model, after, until).await?;
            session.end_replay(&model.ledger, until).await?;
            if until.get() - after.get() < NEAR {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Applies a part of the history; the next page is read meanwhile.
    async fn replay(
        &self,
        session: &mut Session,
        model: &ReadModel,
        after: Position,
        until: Position,
    ) -> Result<(), Trouble> {
        let (sender, mut pages) = mpsc::channel(1);
        let mut reading = JoinSet::new();
        reading.spawn(read_pages(
            self.store.clone(),
            self.projection.categories.clone(),
            (after, until),
            sender,
        ));
        let begun = Instant::now();
        let (mut applied, mut told) = (0_u32, Instant::now());
        while let Some(page) = pages.recv().await {
            let (events, end) = page?;
            self.apply(session, model, &events).await?;
            session.move_checkpoint(&model.ledger, end).await?;
            applied = applied.saturating_add(u32::try_from(events.len()).unwrap_or(u32::MAX));
            if told.elapsed() > TELL {
                told = Instant::now();
                tell(applied, begun.elapsed(), (after, end, until));
            }
            if self.throttle > 0 {
                let due =
                    Duration::from_secs(1).mul_f64(f64::from(applied) / f64::from(self.throttle));
                sleep(due.saturating_sub(begun.elapsed())).await;
            }
        }
        Ok(())
    }

    async fn apply(
        &self,
        session: &mut Session,
        model: &ReadModel,
        events: &[Event],
    ) -> Result<(), Trouble> {
        // What cannot be applied is counted at the end.
        let breaker = Breaker { streams: u64::MAX, window: 1, percent: 100 };
        for batch in events.chunks(PAGE as usize) {
            let batch: Vec<&Event> = batch.iter().collect();
            apply(session, model, &batch, breaker).await?;
        }
        Ok(())
    }

    /// Applies what is committed and not in these tables, without waiting until the order of all
    /// events is decided: stream by stream.
    pub(crate) async fn fold_the_rest(
        &self,
        session: &mut Session,
        model: &ReadModel,
        store: &mut event_store::Session,
    ) -> Result<(), Trouble> {
        let checkpoint = session.checkpoint(&model.ledger).await?;
        let after = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
        let end = store.take_fence().await?.limit();
        let heads = store.stream_heads(after, end, &self.projection.categories).await?;
        for page in heads.chunks(STREAMS_AT_ONCE) {
            let streams: Vec<&StreamId> = page.iter().map(|head| &head.stream_id).collect();
            loop {
                let known = session.heads(&model.ledger, &streams).await?;
                let wanted: Vec<Wanted> = page
                    .iter()
                    .filter_map(|head| missing(&known, &head.stream_id, head.version))
                    .collect();
                if wanted.is_empty() {
                    break;
                }
                let events = store.read_streams(&wanted, EVENTS_AT_ONCE).await?;
                if events.is_empty() {
                    break;
                }
                self.apply(session, model, &events).await?;
            }
        }
        Ok(())
    }

    /// Puts tables in service: closes the gate, applies the rest to them, swaps all of them at once.
    async fn cut_over(
        &self,
        session: &mut Session,
        live: &ReadModel,
        (new, shadow): (&mut Session, &ReadModel),
        from: &str,
        away: &str,
    ) -> Result<(), Trouble> {
        let tables = self.tables(live);
        let mut helper = Session::connect(&self.mysql).await?;
        let mut store = event_store::Session::connect(&self.store).await?;
        // Where the tables in service go, there must be none.
        let (_, other) = helper.shadow(&self.mysql, away).await?;
        other.close().await;
        helper.drop_tables(away, &tables).await?;
        self.note(session, live, RebuildState::CuttingOver).await?;
        let mut pause = Duration::from_millis(100);
        loop {
            self.fold_the_rest(new, shadow, &mut store).await?;
            let closed = Instant::now();
            let (mut batch, _gate) = session.begin(&live.ledger, Passage::Alone).await?;
            self.fold_the_rest(new, shadow, &mut store).await?;
            let swap =
                helper.swap(&self.mysql, &tables, [from, &self.databases.live, away]).await?;
            if swap == Swap::Done || self.is_swapped(&mut helper, &tables, from).await? {
                batch.next_generation(&self.projection).await?;
                batch.commit().await?;
                say(&format!("swapped; no batch was applied for {:?}", closed.elapsed()));
                break;
            }
            batch.rollback().await?;
            say(&format!("a reader holds a table; trying again in {pause:?}"));
            sleep(pause).await;
            pause = SWAP_PAUSE.min(pause * 2);
        }
        store.close().await;
        helper.close().await;
        Ok(())
    }

    /// Whether tables have left the database in which they were built.
    async fn is_swapped(
        &self,
        session: &mut Session,
        tables: &[String],
        from: &str,
    ) -> Result<bool, Trouble> {
        let there = session.count_tables(from, tables).await?;
        let live = session.count_tables(&self.databases.live, tables).await?;
        Ok(there == 0 && live == tables.len())
    }

    /// Applies to the tables in service what they might lack: everything between their checkpoint and
    /// a fence taken now. Versions make a repetition harmless.
    async fn level(&self, session: &mut Session, live: &ReadModel) -> Result<(), Trouble> {
        live.prepare(session).await?;
        self.catch_up(session, live).await
    }
}

/// What tables lack of a stream up to a version. A parked stream lacks nothing that could be applied.
pub(crate) fn missing(
    known: &HashMap<StreamId, Head>,
    stream_id: &StreamId,
    to: StreamVersion,
) -> Option<Wanted> {
    let head = known.get(stream_id).copied().unwrap_or_default();
    let from = head.last.map_or(StreamVersion::FIRST, |last| last.version.next());
    let stream_id = stream_id.clone();
    (from <= to && !head.is_parked).then_some(Wanted { stream_id, from, to })
}

type Page = Result<(Vec<Event>, Position), event_store::Error>;

async fn read_pages(
    store: event_store::Options,
    categories: Vec<domain_events::Category>,
    (mut after, until): (Position, Position),
    pages: mpsc::Sender<Page>,
) {
    let mut session = match event_store::Session::connect(&store).await {
        Ok(session) => session,
        Err(error) => {
            // Nobody waits for it any more if this fails.
            drop(pages.send(Err(error)).await);
            return;
        }
    };
    while after < until {
        let page = session.read_events(after, until, &categories, PAGE).await;
        if let Ok((_, end)) = &page {
            after = *end;
        }
        let failed = page.is_err();
        if pages.send(page).await.is_err() || failed {
            return;
        }
    }
    session.close().await;
}

/// Positions may lie far apart where other categories are, so the rest is an estimate.
fn tell(applied: u32, after: Duration, (from, at, until): (Position, Position, Position)) {
    let seconds = after.as_secs_f64();
    let rate = f64::from(applied) / seconds;
    let (done, all) = (at.get() - from.get(), until.get() - from.get());
    let left =
        (all - done).saturating_mul(i64::try_from(after.as_secs()).unwrap_or(0)) / done.max(1);
    say(&format!(
        "position {} of {} ({} %), {rate:.0} events/s, {left} s left",
        at.get(),
        until.get(),
        100 * done / all.max(1),
    ));
}
