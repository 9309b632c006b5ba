//! Applying history: the one driver for new projections, rebuilds and comparisons.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain_events::{Category, Position, StoredEvent, StreamId};
use futures_util::future::try_join_all;
use projection::plan::{Heads, Verdict};
use read_model::{Applied, Breaker, Options, Part, ReadModel, Session, apply};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Sink;
use super::catch_up::catch_up;
use crate::context::Context;
use crate::error::Error;
use crate::failpoints::failpoint;
use crate::metrics::Healing;

/// Events of a page of history at most.
pub(crate) const PAGE: u32 = 8_000;
/// Events of one transaction at most.
const BATCH: usize = 4_000;
/// How long to wait for open transactions before they are reported.
pub(crate) const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// How often the checkpoint moves. What is applied again after a crash is known by its versions.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Tables to which history is applied. Where every row belongs to a stream, several lanes work side by
/// side.
pub(crate) struct Target {
    /// The projection.
    pub(crate) model: Arc<ReadModel>,
    /// One for each lane.
    sessions: Vec<Session>,
    options: Options,
    /// Of a daemon, whose metrics count the events, and whose breaker pauses the projection.
    daemon: Option<Arc<Context>>,
}

impl Target {
    /// The tables that `session` sees.
    pub(crate) async fn of(
        model: Arc<ReadModel>,
        mut session: Session,
        options: &Options,
    ) -> Result<Self, Error> {
        model.prepare(&mut session).await?;
        let mut sessions = vec![session];
        for _ in 1..model.lanes() {
            sessions.push(Session::connect(options).await?);
        }
        Ok(Self { model, sessions, options: options.clone(), daemon: None })
    }

    /// Tables in service, whose events a daemon counts.
    pub(crate) async fn of_daemon(
        context: &Arc<Context>,
        model: &Arc<ReadModel>,
    ) -> Result<Self, Error> {
        let session = Session::connect(&context.mysql).await?;
        let target = Self::of(Arc::clone(model), session, &context.mysql).await?;
        Ok(Self { daemon: Some(Arc::clone(context)), ..target })
    }

    /// Connects again where a session was idle for too long.
    pub(crate) async fn revive(&mut self) -> Result<(), Error> {
        for session in std::mem::take(&mut self.sessions) {
            self.sessions.push(session.or_new(&self.options).await?);
        }
        Ok(())
    }

    /// The first session and the read model, for what is done once.
    pub(crate) fn session(&mut self) -> (&mut Session, &ReadModel) {
        (&mut self.sessions[0], &self.model)
    }

    /// Ends the connections.
    pub(crate) async fn close(self) {
        for session in self.sessions {
            session.close().await;
        }
    }

    /// Up to where the history is applied.
    pub(crate) async fn position(&mut self) -> Result<Position, Error> {
        let (session, model) = self.session();
        let checkpoint = session.checkpoint(&model.ledger).await?;
        Ok(checkpoint.map_or(Position::START, |checkpoint| checkpoint.position))
    }

    /// Applies what is committed and not in these tables, stream by stream, without waiting until the
    /// order of all events is decided.
    pub(crate) async fn fold_the_rest(
        &mut self,
        store: &mut event_store::Session,
    ) -> Result<(), Error> {
        let after = self.position().await?;
        let end = store.take_fence().await?.limit();
        let heads = store.stream_heads(after, end, &self.model.projection.categories).await?;
        let heads: Vec<_> = heads.into_iter().map(|head| (head.stream_id, head.version)).collect();
        catch_up(self, store, &heads).await.map(drop)
    }
}

impl Sink for Target {
    async fn heads(&mut self, streams: &[&StreamId]) -> Result<Heads, Error> {
        let (session, model) = self.session();
        Ok(session.heads(&model.ledger, streams).await?)
    }

    async fn apply(&mut self, events: &[StoredEvent]) -> Result<Part, Error> {
        self.revive().await?;
        let Self { model, sessions, daemon, .. } = self;
        let mut parts: Vec<Vec<&StoredEvent>> = vec![Vec::new(); sessions.len()];
        for event in events {
            let mut hasher = DefaultHasher::new();
            event.stream_id.as_str().hash(&mut hasher);
            let lane = hasher.finish() % parts.len() as u64;
            parts[usize::try_from(lane).unwrap_or_default()].push(event);
        }
        let lanes = sessions.iter_mut().zip(&parts).map(async |(session, part)| {
            let mut total = Part::default();
            let batch = daemon.as_ref().map_or(BATCH, |context| context.settings.batch_size);
            for batch in part.chunks(batch) {
                let applied = apply_batch(daemon.as_deref(), session, model, batch).await?;
                total.applied += applied.count(Verdict::Apply);
                total.parked = applied.parked.into_iter().next().or(total.parked);
            }
            Ok::<_, Error>(total)
        });
        let mut total = Part::default();
        for part in try_join_all(lanes).await? {
            total.applied += part.applied;
            total.parked = part.parked.or(total.parked);
        }
        Ok(total)
    }
}

async fn apply_batch(
    daemon: Option<&Context>,
    session: &mut Session,
    model: &ReadModel,
    batch: &[&StoredEvent],
) -> Result<Applied, Error> {
    match daemon {
        // Streams that park are counted at the end.
        None => Ok(apply(session, model, batch, Breaker::NONE).await?),
        Some(context) => {
            let applied = context.apply(session, model, batch).await?;
            context.metrics.healed(model.name(), Healing::Replay, applied.count(Verdict::Apply));
            Ok(applied)
        }
    }
}

/// A part of the history, and how far its replay is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: Position,
    pub(crate) at: Position,
    pub(crate) until: Position,
}

/// What accompanies a replay: it reports how far that is, and may slow it down or end it.
pub(crate) trait Pace {
    /// Why it ends.
    type Error: From<Error>;

    /// Events of a page at most.
    fn page(&self) -> u32 {
        PAGE
    }

    /// Called after each page.
    async fn passed(
        &mut self,
        model: &ReadModel,
        page: &[StoredEvent],
        span: Span,
    ) -> Result<(), Self::Error>;
}

/// Applies the history in `from < position <= until`. The next page is read meanwhile. An event that
/// cannot be applied parks its stream.
///
/// # Errors
///
/// When a server fails, and what `pace` ends it with. It can be called again, from the checkpoint on.
pub(crate) async fn replay<P: Pace>(
    store: &event_store::Options,
    target: &mut Target,
    (from, until): (Position, Position),
    pace: &mut P,
) -> Result<(), P::Error> {
    let (sender, mut pages) = mpsc::channel(1);
    let mut reading = JoinSet::new();
    let categories = target.model.projection.categories.clone();
    reading.spawn(read_pages(store.clone(), categories, (from, until), pace.page(), sender));
    let mut moved = Instant::now();
    while let Some(page) = pages.recv().await {
        let (events, at) = page.map_err(Error::from)?;
        target.apply(&events).await?;
        failpoint!("replay::page-applied");
        if at >= until || moved.elapsed() > CHECKPOINT_INTERVAL {
            let (session, model) = target.session();
            session.move_checkpoint(&model.ledger, at).await.map_err(Error::from)?;
            moved = Instant::now();
            failpoint!("replay::checkpoint-moved");
        }
        pace.passed(&target.model, &events, Span { from, at, until }).await?;
    }
    let (session, model) = target.session();
    session.end_replay(&model.ledger, until).await.map_err(Error::from)?;
    failpoint!("replay::ended");
    Ok(())
}

type Page = Result<(Vec<StoredEvent>, Position), event_store::Error>;

async fn read_pages(
    store: event_store::Options,
    categories: Vec<Category>,
    (mut after, until): (Position, Position),
    page: u32,
    pages: mpsc::Sender<Page>,
) {
    let mut session = match event_store::Session::connect(&store).await {
        Ok(session) => session,
        Err(error) => {
            // If this fails, nobody waits for the page any more.
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
