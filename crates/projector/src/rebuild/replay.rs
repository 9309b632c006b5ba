//! Filling tables with the history.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use domain_events::{Event, EventType, Position, StreamId, StreamVersion};
use event_store::Wanted;
use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::report::Report;
use super::{Rebuilder, crash};
use crate::apply::{Breaker, ReadModel, apply};
use crate::behind::lag;
use crate::history::History;
use crate::mysql::{Options, Passage, Progress, Session, Wishes};
use crate::projection::Lookup;
use crate::sequence::Head;
use crate::trouble::Trouble;

/// Events of a page of history, and of one transaction, at most.
const PAGE: u32 = 8_000;
const BATCH: usize = 4_000;
/// How long to wait for writers before saying whom.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// Streams, and events of each, that are read at once.
pub(crate) const STREAMS_AT_ONCE: usize = 100;
pub(crate) const EVENTS_AT_ONCE: u32 = 100;
/// When so few positions are left, the tables are near enough.
const NEAR: i64 = 2_000;
/// How often to come nearer before that is enough.
const ROUNDS: u32 = 10;
/// How often progress is told.
const TELL: Duration = Duration::from_secs(1);
/// What cannot be applied is counted at the end.
const NO_BREAKER: Breaker = Breaker { streams: u64::MAX, window: 1, percent: 100 };

/// Tables that are filled.
pub(crate) struct Target {
    /// The projection.
    pub(crate) model: ReadModel,
    /// One for each lane.
    sessions: Vec<Session>,
    options: Options,
}

impl Target {
    /// Tables that `session` sees. Where all rows belong to streams, several lanes work side by side.
    pub(crate) async fn of(
        model: ReadModel,
        mut session: Session,
        options: &Options,
    ) -> Result<Self, Trouble> {
        model.prepare(&mut session).await?;
        let lanes = match model.forms().passage() {
            Passage::Shared => model.projection.lanes,
            Passage::Alone => 1,
        };
        let mut sessions = vec![session];
        for _ in 1..lanes {
            sessions.push(Session::connect(options).await?);
        }
        Ok(Self { model, sessions, options: options.clone() })
    }

    /// Connects anew where a session was idle for too long.
    pub(crate) async fn revive(&mut self) -> Result<(), Trouble> {
        for session in std::mem::take(&mut self.sessions) {
            self.sessions.push(session.or_new(&self.options).await?);
        }
        Ok(())
    }

    /// For what is done once.
    pub(crate) fn session(&mut self) -> (&mut Session, &ReadModel) {
        (&mut self.sessions[0], &self.model)
    }

    /// Says goodbye to the server.
    pub(crate) async fn close(self) {
        for session in self.sessions {
            session.close().await;
        }
    }

    /// Applies events, each stream in order.
    pub(crate) async fn apply(&mut self, events: &[Event]) -> Result<(), Trouble> {
        self.revive().await?;
        let Self { model, sessions, .. } = self;
        let mut parts: Vec<Vec<&Event>> = vec![Vec::new(); sessions.len()];
        for event in events {
            let mut hasher = DefaultHasher::new();
            event.stream_id().map(StreamId::as_str).hash(&mut hasher);
            let lane = hasher.finish() % parts.len() as u64;
            parts[usize::try_from(lane).unwrap_or_default()].push(event);
        }
        let lanes = sessions.iter_mut().zip(&parts).map(async |(session, part)| {
            for batch in part.chunks(BATCH) {
                apply(session, model, batch, NO_BREAKER).await?;
            }
            Ok::<_, Trouble>(())
        });
        try_join_all(lanes).await.map(drop)
    }

    /// Up to where the history is applied.
    pub(crate) async fn position(&mut self) -> Result<Position, Trouble> {
        let (session, model) = self.session();
        let checkpoint = session.checkpoint(&model.ledger).await?;
        Ok(checkpoint.map_or(Position::START, |checkpoint| checkpoint.position))
    }

    /// Brings streams up to versions, or as far as they go.
    pub(crate) async fn fold(
        &mut self,
        store: &mut event_store::Session,
        streams: &[(StreamId, StreamVersion)],
    ) -> Result<(), Trouble> {
        for page in streams.chunks(STREAMS_AT_ONCE) {
            let names: Vec<&StreamId> = page.iter().map(|(stream_id, _)| stream_id).collect();
            loop {
                let (session, model) = self.session();
                let known = session.heads(&model.ledger, &names).await?;
                let wanted: Vec<Wanted> =
                    page.iter().filter_map(|(id, version)| missing(&known, id, *version)).collect();
                if wanted.is_empty() {
                    break;
                }
                let events = store.read_streams(&wanted, EVENTS_AT_ONCE).await?;
                if events.is_empty() {
                    break;
                }
                self.apply(&events).await?;
            }
        }
        Ok(())
    }

    /// Applies what is committed and not in these tables, without waiting until the order of all
    /// events is decided: stream by stream.
    pub(crate) async fn fold_the_rest(
        &mut self,
        store: &mut event_store::Session,
    ) -> Result<(), Trouble> {
        let after = self.position().await?;
        let end = store.take_fence().await?.limit();
        let heads = store.stream_heads(after, end, &self.model.projection.categories).await?;
        let heads: Vec<_> = heads.into_iter().map(|head| (head.stream_id, head.version)).collect();
        self.fold(store, &heads).await
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

/// What accompanies a replay: whom it tells, and what slows it down.
pub(crate) struct Course<'c> {
    report: &'c Report,
    wishes: Wishes,
    /// The session that keeps others away; it must not fall idle.
    owner: &'c mut Session,
    /// Of a rebuild: the live tables, in whose bookkeeping it stands.
    live: Option<&'c ReadModel>,
    begun: Instant,
    told: Option<Instant>,
    /// What was told last.
    progress: Progress,
    /// When the throttle lets another page through.
    next: Instant,
    /// Events so far.
    pub(crate) events: u64,
    /// Of types that no handler is for.
    pub(crate) unhandled: HashMap<EventType, u64>,
}

impl<'c> Course<'c> {
    /// Of tables that are only looked at.
    pub(crate) fn of_look(report: &'c Report, owner: &'c mut Session) -> Self {
        Self {
            report,
            wishes: Wishes::default(),
            owner,
            live: None,
            begun: Instant::now(),
            told: None,
            progress: Progress::default(),
            next: Instant::now(),
            events: 0,
            unhandled: HashMap::new(),
        }
    }

    /// Of a rebuild.
    pub(super) fn of_job(
        report: &'c Report,
        wishes: Wishes,
        session: &'c mut Session,
        live: &'c ReadModel,
    ) -> Self {
        Self { wishes, live: Some(live), ..Self::of_look(report, session) }
    }

    async fn passed(
        &mut self,
        model: &ReadModel,
        page: &[Event],
        (from, at, until): (Position, Position, Position),
    ) -> Result<(), Trouble> {
        self.events += page.len() as u64;
        for event in page {
            let lookup = model.projection.lookup(&event.event_type, event.schema_version);
            if model.projection.code.is_none() && matches!(lookup, Lookup::Unhandled) {
                *self.unhandled.entry(event.event_type.clone()).or_default() += 1;
            }
        }
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return Ok(());
        }
        self.told = Some(Instant::now());
        self.progress = self.measure(from, at, until);
        self.report.progress(&self.progress);
        self.note().await
    }

    /// Positions may lie far apart where other categories are, so what is left is an estimate.
    fn measure(&self, from: Position, at: Position, until: Position) -> Progress {
        let elapsed = self.begun.elapsed();
        let done = u128::from((at.get() - from.get()).unsigned_abs());
        let left = u128::from((until.get() - at.get()).unsigned_abs());
        let seconds_left = (left * elapsed.as_millis()).checked_div(done * 1_000);
        let rate = u128::from(self.events) * 1_000 / elapsed.as_millis().max(1);
        Progress {
            position: at.get(),
            until: until.get(),
            events: self.events,
            events_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            seconds_left: seconds_left.and_then(|seconds| u64::try_from(seconds).ok()),
        }
    }

    async fn note(&mut self) -> Result<(), Trouble> {
        let Some(live) = self.live else { return Ok(self.owner.stay().await?) };
        if self.owner.note_progress(&live.ledger, &self.progress).await? {
            Ok(())
        } else {
            Err(Trouble::Cancelled { projection: live.name().to_owned() })
        }
    }

    /// Events of a page: a throttle is felt several times a second.
    fn page(&self) -> u32 {
        match self.wishes.throttle {
            0 => PAGE,
            throttle => (throttle / 4).clamp(1, PAGE),
        }
    }

    async fn pace(
        &mut self,
        events: u32,
        store: &mut Option<event_store::Session>,
        rebuilder: &Rebuilder,
    ) -> Result<(), Trouble> {
        if self.wishes.throttle > 0 {
            let due = Duration::from_secs(1) * events / self.wishes.throttle;
            // What a wait has left unused is not made up for.
            self.next = Instant::now().max(self.next + due);
            sleep(self.next.saturating_duration_since(Instant::now())).await;
        }
        let limit = f64::from(self.wishes.max_lag);
        let Some(live) = self.live.filter(|_| limit > 0.0) else { return Ok(()) };
        if store.is_none() {
            *store = Some(event_store::Session::connect(&rebuilder.store).await?);
        }
        let Some(store) = store else { return Ok(()) };
        let mut told = false;
        loop {
            let (events, seconds) = lag(self.owner, store, live).await?;
            if seconds <= limit {
                return Ok(());
            }
            if !told {
                let name = live.name();
                self.report.say(&format!("waiting: {name} is {events} events behind"));
                told = true;
            }
            // So that it can be cancelled.
            self.note().await?;
            sleep(TELL).await;
        }
    }
}

impl Rebuilder {
    /// Applies the history until there is hardly anything left.
    pub(crate) async fn catch_up(
        &self,
        target: &mut Target,
        course: &mut Course<'_>,
    ) -> Result<(), Trouble> {
        for _ in 0..ROUNDS {
            if self.come_nearer(target, course).await? < NEAR {
                break;
            }
        }
        Ok(())
    }

    /// Applies the history up to where its order is decided; gives how many positions that were.
    pub(crate) async fn come_nearer(
        &self,
        target: &mut Target,
        course: &mut Course<'_>,
    ) -> Result<i64, Trouble> {
        let mut history = History::new(self.store.clone());
        let until = loop {
            match history.decided(FENCE_PATIENCE).await? {
                Ok(until) => break until,
                Err(writers) => {
                    course.report.say(&format!("waiting: {writers}"));
                    let at = target.position().await?;
                    course.progress = course.measure(at, at, at);
                    course.note().await?;
                }
            }
        };
        let after = target.position().await?;
        if after >= until {
            return Ok(0);
        }
        let (session, model) = target.session();
        // Tables in service have a checkpoint, and go on being filled from the queue meanwhile.
        if session.checkpoint(&model.ledger).await?.is_none() {
            session.begin_replay(&model.ledger, until).await?;
            crash::point("a replay is begun");
        }
        self.replay(target, after, until, course).await?;
        let (session, model) = target.session();
        session.end_replay(&model.ledger, until).await?;
        crash::point("a replay is ended");
        Ok(until.get() - after.get())
    }

    /// Applies a part of the history; the next page is read meanwhile.
    async fn replay(
        &self,
        target: &mut Target,
        after: Position,
        until: Position,
        course: &mut Course<'_>,
    ) -> Result<(), Trouble> {
        let (sender, mut pages) = mpsc::channel(1);
        let mut reading = JoinSet::new();
        let categories = target.model.projection.categories.clone();
        let page = course.page();
        reading.spawn(read_pages(self.store.clone(), categories, (after, until), page, sender));
        let (mut store, mut moved) = (None, Instant::now());
        while let Some(page) = pages.recv().await {
            let (events, end) = page?;
            target.apply(&events).await?;
            crash::point("a page is applied");
            // What is applied again after a crash is known by its versions.
            if end >= until || moved.elapsed() > TELL {
                let (session, model) = target.session();
                session.move_checkpoint(&model.ledger, end).await?;
                moved = Instant::now();
                crash::point("the checkpoint is moved");
            }
            course.passed(&target.model, &events, (after, end, until)).await?;
            course.pace(u32::try_from(events.len()).unwrap_or(u32::MAX), &mut store, self).await?;
        }
        Ok(())
    }
}

type Page = Result<(Vec<Event>, Position), event_store::Error>;

async fn read_pages(
    store: event_store::Options,
    categories: Vec<domain_events::Category>,
    (mut after, until): (Position, Position),
    page: u32,
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
        let read = session.read_events(after, until, &categories, page).await;
        if let Ok((_, end)) = &read {
            after = *end;
        }
        let failed = read.is_err();
        if pages.send(read).await.is_err() || failed {
            return;
        }
    }
    session.close().await;
}
