//! Applies history in order. New projections, rebuilds and comparisons use this one loop.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain_events::{Category, Landmark, Position, StoredEvent, StreamId};
use futures_util::future::try_join_all;
use projection::plan::{Heads, Verdict};
use read_model::{Applied, Breaker, Options, Part, ReadModel, Session, apply};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Sink;
use super::catch_up::catch_up;
use crate::context::Context;
use crate::error::Error;
use crate::failpoints::failpoint;
use crate::metrics::Healing;

/// The most events of history in one page.
pub(crate) const PAGE: u32 = 8_000;
/// The most events in one transaction.
const BATCH: usize = 4_000;
/// How long to wait for open transactions that append events, before reporting them.
pub(crate) const FENCE_PATIENCE: Duration = Duration::from_secs(5);
/// How often the checkpoint moves. After a crash, events since the last move are read again; their versions
/// show that they are applied.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// The number of events that a replay applies before it first reports progress. It grows while they are applied
/// quickly.
const FIRST_SLICE: usize = 250;
/// How long a slice of a page may take, before the next one is smaller.
const SLICE_TIME: Duration = Duration::from_secs(1);
/// How often the session that holds the lock of a replay is used.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The tables to which history is applied. If every row belongs to one stream, several lanes apply events in
/// parallel.
pub(crate) struct Target {
    pub(crate) model: Arc<ReadModel>,
    /// One session for each lane.
    sessions: Vec<Session>,
    options: Options,
    /// Set for live tables: the metrics of this daemon count the events, and its breaker may pause the
    /// projection.
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

    /// The live tables, with the metrics and the breaker of a daemon.
    pub(crate) async fn of_daemon(
        context: &Arc<Context>,
        model: &Arc<ReadModel>,
    ) -> Result<Self, Error> {
        let session = Session::connect(&context.mysql).await?;
        let target = Self::of(Arc::clone(model), session, &context.mysql).await?;
        Ok(Self { daemon: Some(Arc::clone(context)), ..target })
    }

    /// Replaces sessions that were idle for too long.
    pub(crate) async fn reconnect_idle(&mut self) -> Result<(), Error> {
        for session in std::mem::take(&mut self.sessions) {
            self.sessions.push(session.or_new(&self.options).await?);
        }
        Ok(())
    }

    /// The first session and the read model, for work that needs no lanes.
    pub(crate) fn session(&mut self) -> (&mut Session, &ReadModel) {
        (&mut self.sessions[0], &self.model)
    }

    /// Closes the connections.
    pub(crate) async fn close(self) {
        for session in self.sessions {
            session.close().await;
        }
    }

    /// The position up to which the history is applied.
    pub(crate) async fn position(&mut self) -> Result<Position, Error> {
        let (session, model) = self.session();
        let checkpoint = session.checkpoint(&model.ledger).await?;
        Ok(checkpoint.map_or(Position::START, |checkpoint| checkpoint.position))
    }

    /// Applies all committed events that these tables lack, stream by stream: not for a projection that needs the
    /// order of the event store. Unlike a replay, this does not
    /// wait for open transactions, and does not move the checkpoint.
    pub(crate) async fn catch_up_streams(
        &mut self,
        store: &mut event_store::Session,
    ) -> Result<(), Error> {
        let after = self.position().await?;
        let end = store.take_fence().await?.limit();
        let heads = store.stream_heads(after, end, &self.model.projection.categories).await?;
        let heads: Vec<_> = heads.into_iter().map(|head| (head.stream_id, head.version)).collect();
        catch_up(self, store, &heads).await.map(drop)
    }

    /// Applies the events that these tables lack up to a decided position, in the order of the event store.
    pub(crate) async fn catch_up_in_order(
        &mut self,
        store: &mut event_store::Session,
        until: Position,
    ) -> Result<(), Error> {
        let mut after = self.position().await?;
        while after < until {
            let categories = &self.model.projection.categories;
            let (events, end) = store.read_events(after, until, categories, PAGE).await?;
            self.apply(&events).await?;
            let (session, model) = self.session();
            session.move_checkpoint(&model.ledger, end, events.last().map(landmark)).await?;
            after = end;
        }
        Ok(())
    }
}

impl Sink for Target {
    async fn heads(&mut self, streams: &[&StreamId]) -> Result<Heads, Error> {
        let (session, model) = self.session();
        Ok(session.heads(&model.ledger, streams).await?)
    }

    async fn apply(&mut self, events: &[StoredEvent]) -> Result<Part, Error> {
        self.reconnect_idle().await?;
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
        // No breaker: the caller decides about parked streams at the end.
        None => Ok(apply(session, model, batch, Breaker::NONE).await?),
        Some(context) => {
            let applied = context.apply(session, model, batch).await?;
            context.metrics.healed(model.name(), Healing::Replay, applied.count(Verdict::Apply));
            Ok(applied)
        }
    }
}

/// The replayed part of the history, and the progress in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: Position,
    pub(crate) at: Position,
    pub(crate) until: Position,
}

/// Accompanies a replay: reports its progress, and may slow it down or end it.
pub(crate) trait Pace {
    /// Why the replay ends.
    type Error: From<Error>;

    /// The most events in a page.
    fn page(&self) -> u32 {
        PAGE
    }

    /// Called every [`KEEP_ALIVE`] while a page is applied. Handlers may be slow, and MySQL ends sessions
    /// that are idle for 60 s, with the locks that they hold.
    async fn keep_alive(&mut self) -> Result<(), Self::Error>;

    /// Called after each slice of a page.
    async fn passed(
        &mut self,
        model: &ReadModel,
        slice: &[StoredEvent],
        span: Span,
    ) -> Result<(), Self::Error>;
}

/// Applies the history in `from < position <= until`, and reads the next page meanwhile. An event that cannot
/// be applied parks its stream.
///
/// # Errors
///
/// When a server fails, or `pace` ends the replay. It can then be called again, from the checkpoint on.
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
    let (mut moved, mut slice) = (Instant::now(), FIRST_SLICE);
    let mut last = None;
    while let Some(page) = pages.recv().await {
        let (events, end) = page.map_err(Error::from)?;
        let mut rest = &events[..];
        loop {
            // Handlers may be slow: a whole page can take hours, and progress must show meanwhile.
            let (now, later) = rest.split_at(slice.min(rest.len()));
            let begun = Instant::now();
            apply_slice(target, now, pace).await?;
            failpoint!("replay::page-applied");
            slice = next_slice(slice, begun.elapsed());
            let at =
                if later.is_empty() { end } else { now.last().map_or(end, |last| last.position) };
            last = now.last().map(landmark).or(last);
            if at >= until || moved.elapsed() > CHECKPOINT_INTERVAL {
                let (session, model) = target.session();
                let move_on = session.move_checkpoint(&model.ledger, at, last);
                move_on.await.map_err(Error::from)?;
                moved = Instant::now();
                failpoint!("replay::checkpoint-moved");
            }
            pace.passed(&target.model, now, Span { from, at, until }).await?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }
    // Panics if the reader did. Otherwise the replay would count as complete.
    reading.join_all().await;
    let (session, model) = target.session();
    session.end_replay(&model.ledger, until).await.map_err(Error::from)?;
    failpoint!("replay::ended");
    Ok(())
}

/// The size of the next slice.
fn next_slice(size: usize, took: Duration) -> usize {
    if took > SLICE_TIME { (size / 2).max(1) } else { (size * 2).min(PAGE as usize) }
}

/// The landmark of an event.
pub(crate) fn landmark(event: &StoredEvent) -> Landmark {
    Landmark { position: event.position, event_id: event.event_id }
}

async fn apply_slice<P: Pace>(
    target: &mut Target,
    events: &[StoredEvent],
    pace: &mut P,
) -> Result<(), P::Error> {
    let mut applying = pin!(target.apply(events));
    loop {
        match timeout(KEEP_ALIVE, &mut applying).await {
            Ok(applied) => return applied.map(drop).map_err(P::Error::from),
            Err(_elapsed) => pace.keep_alive().await?,
        }
    }
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
            // If this fails, the replay has ended, and nobody waits for the page.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_grow_while_handlers_are_quick_and_shrink_while_they_are_slow() {
        let (quick, slow) = (SLICE_TIME / 2, SLICE_TIME * 2);
        assert_eq!(next_slice(FIRST_SLICE, quick), 2 * FIRST_SLICE);
        assert_eq!(next_slice(PAGE as usize, quick), PAGE as usize);
        assert_eq!(next_slice(FIRST_SLICE, slow), FIRST_SLICE / 2);
        assert_eq!(next_slice(1, slow), 1);
    }
}
