//! Proving that a read model is right.

use std::fmt;

use domain_events::{Position, StreamId, StreamVersion};
use projection::plan::{Head, Last};
use read_model::{Admitted, Comparison, Drift, ReadModel, Rows, Session};
use serde::Serialize;

use super::progress::RebuildPace;
use super::{Error, Rebuilder};
use crate::history::{OneBatch, STREAMS_AT_ONCE, Sink, Target, behind, catch_up};

/// Streams of a sample that are folded before the session is used again.
const SAMPLED_AT_ONCE: usize = 1_000;
/// Streams of the bookkeeping that are compared at once.
const BOOKKEEPING_PAGE: u32 = 1_000;

/// What a comparison found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// Rows that are not as they must be.
    pub(crate) drift: Vec<Drift>,
    /// Streams whose bookkeeping does not fit the event store.
    pub(crate) streams: Vec<Misfit>,
}

impl Findings {
    /// Whether everything is right.
    pub(crate) fn is_empty(&self) -> bool {
        self.drift.is_empty() && self.streams.is_empty()
    }
}

/// A stream whose bookkeeping does not fit the event store.
#[derive(Debug, Serialize)]
pub(crate) struct Misfit {
    stream_id: String,
    /// The last version that was applied.
    applied: i64,
    /// What is wrong with it.
    kind: MisfitKind,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum MisfitKind {
    /// The event store does not have that event.
    Ahead,
    /// It has another event with that version.
    OtherEvent,
    /// It has more events, from before the checkpoint, that were not applied.
    Behind,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream_id, applied, kind } = self;
        match kind {
            MisfitKind::Ahead => write!(
                f,
                "stream {stream_id}: version {applied} was applied, and the event store does not have \
                 it: was an older one restored?"
            ),
            MisfitKind::OtherEvent => write!(
                f,
                "stream {stream_id}: version {applied} was applied from another event than the event \
                 store has"
            ),
            MisfitKind::Behind => write!(
                f,
                "stream {stream_id}: version {applied} was the last to be applied, though later ones \
                 lie before the checkpoint"
            ),
        }
    }
}

/// A comparison at work.
struct Verification<'v> {
    rebuilder: &'v Rebuilder,
    session: Session,
    store: event_store::Session,
    live: ReadModel,
    /// What the event store gives.
    right: Target,
    comparisons: Vec<Comparison>,
    /// Only these streams.
    sample: Option<Vec<(StreamId, StreamVersion)>>,
}

impl Rebuilder {
    /// Folds the history beside the live tables and compares every row. Live batches go on meanwhile,
    /// but for the moment in which rows that differ are looked at again, both at the same versions.
    ///
    /// With `sample`, only so many streams, chosen at random. With `repair`, rows are made right.
    pub(crate) async fn verify(
        &self,
        sample: Option<u32>,
        repair: bool,
    ) -> Result<Findings, Error> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        session.require_tables(&live.projection, &live.ledger).await?;
        self.alone(&mut session, &live.ledger).await?;
        live.prepare(&mut session).await?;
        let mut store = event_store::Session::connect(&self.store).await?;
        let streams = misfits(&mut session, &mut store, &live).await?;
        let comparisons = self.comparisons(&mut session, &live, sample.is_some()).await?;
        let (database, tables) = (&self.databases.verify, self.tables(&live.ledger));
        // What an interrupted one may have left.
        session.make_database(database).await?;
        session.drop_tables(database, &tables).await?;
        for compared in &comparisons {
            session.drop_suspects(compared).await?;
        }
        let sample = match sample {
            None => None,
            Some(count) => {
                let chosen = session.some_streams(&live.ledger, count).await?;
                Some(chosen.into_iter().map(|id| (id, StreamVersion::LAST)).collect())
            }
        };
        let right = self.target(&mut session, database).await?;
        let mut verification =
            Verification { rebuilder: self, session, store, live, right, comparisons, sample };
        let drift = verification.compare(repair).await?;
        let Verification { mut session, comparisons, store, right, .. } = verification;
        for compared in &comparisons {
            session.drop_suspects(compared).await?;
        }
        session.drop_tables(database, &tables).await?;
        right.close().await;
        store.close().await;
        session.close().await;
        Ok(Findings { drift, streams })
    }

    async fn comparisons(
        &self,
        session: &mut Session,
        live: &ReadModel,
        of_streams: bool,
    ) -> Result<Vec<Comparison>, Error> {
        let columns = of_streams.then(|| live.forms().stream_columns(&live.projection));
        let columns = columns.transpose().map_err(|reason| {
            let projection = self.name().to_owned();
            Error::NotOwned { projection, reason }
        })?;
        let mut comparisons = Vec::new();
        for table in &live.projection.tables {
            let rows = match &columns {
                None => Rows::All,
                Some(columns) => match columns.get(&table.name) {
                    // No handler changes it.
                    None => continue,
                    Some(column) => Rows::OfStreams {
                        column: column.clone(),
                        streams: live.ledger.streams_table().to_owned(),
                    },
                },
            };
            let info = session.table_info(&table.name).await?;
            let right = &self.databases.verify;
            comparisons.push(Comparison::of(&table.name, &info, right, &rows)?);
        }
        Ok(comparisons)
    }
}

impl Verification<'_> {
    async fn compare(&mut self, repair: bool) -> Result<Vec<Drift>, Error> {
        let report = &self.rebuilder.report;
        if self.sample.is_none() {
            let store = &self.rebuilder.store;
            let mut pace = RebuildPace::of_comparison(report, store, &mut self.session);
            self.rebuilder.catch_up(&mut self.right, &mut pace).await?;
        }
        self.fold_the_rest().await?;
        let mut suspects = 0;
        for compared in &self.comparisons {
            suspects += self.session.collect_suspects(compared).await?;
        }
        self.right.revive().await?;
        if suspects == 0 {
            return Ok(Vec::new());
        }
        report.say(&format!(
            "{suspects} rows differ or are moving; they are compared again while no batch is applied"
        ));
        self.fold_the_rest().await?;
        let Self { session, store, live, right, .. } = self;
        let mut batch = live.begin_alone(session).await?;
        fold_the_rest(right, store, self.sample.as_deref()).await?;
        let behind = match &self.sample {
            Some(sample) => sample.iter().map(|(stream_id, _)| stream_id.clone()).collect(),
            None => live_streams_behind(right, store, &self.rebuilder.databases.live).await?,
        };
        catch_up_with(&mut batch, live, right, store, &behind).await?;
        let mut drift = Vec::new();
        for compared in &self.comparisons {
            drift.extend(batch.recheck(compared).await?);
        }
        if repair && !drift.is_empty() {
            for compared in &self.comparisons {
                batch.repair(compared).await?;
            }
        }
        batch.commit().await?;
        Ok(drift)
    }

    async fn fold_the_rest(&mut self) -> Result<(), Error> {
        let Some(sample) = &self.sample else {
            return Ok(self.right.fold_the_rest(&mut self.store).await?);
        };
        for part in sample.chunks(SAMPLED_AT_ONCE) {
            catch_up(&mut self.right, &mut self.store, part).await?;
            self.session.ping().await?;
        }
        Ok(())
    }
}

async fn fold_the_rest(
    right: &mut Target,
    store: &mut event_store::Session,
    sample: Option<&[(StreamId, StreamVersion)]>,
) -> Result<(), Error> {
    match sample {
        Some(sample) => catch_up(right, store, sample).await.map(drop)?,
        None => right.fold_the_rest(store).await?,
    }
    Ok(())
}

/// The streams of which the live tables may have applied fewer events than the other ones.
async fn live_streams_behind(
    right: &mut Target,
    store: &mut event_store::Session,
    live: &str,
) -> Result<Vec<StreamId>, Error> {
    let after = right.position().await?;
    let end = store.take_fence().await?.limit();
    let (session, model) = right.session();
    let mut behind = session.streams_behind_of(live, &model.ledger).await?;
    let heads = store.stream_heads(after, end, &model.projection.categories).await?;
    behind.extend(heads.into_iter().map(|head| head.stream_id));
    behind.sort_unstable();
    behind.dedup();
    Ok(behind)
}

/// Brings streams of the live tables to the versions of the other ones, within a batch.
async fn catch_up_with(
    batch: &mut Admitted<'_>,
    live: &ReadModel,
    right: &mut Target,
    store: &mut event_store::Session,
    streams: &[StreamId],
) -> Result<(), Error> {
    for page in streams.chunks(STREAMS_AT_ONCE) {
        let names: Vec<&StreamId> = page.iter().collect();
        let there = right.heads(&names).await?;
        let version = |(stream_id, head): (StreamId, Head)| Some((stream_id, head.last?.version));
        let wanted: Vec<_> = there.into_iter().filter_map(version).collect();
        catch_up(&mut OneBatch { batch, model: live }, store, &wanted).await?;
    }
    Ok(())
}

/// The streams whose bookkeeping does not fit the event store.
async fn misfits(
    session: &mut Session,
    store: &mut event_store::Session,
    live: &ReadModel,
) -> Result<Vec<Misfit>, Error> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        // The bookkeeping first: whatever it has, the event store had before.
        let page = session.bookkeeping(&live.ledger, after.as_ref(), BOOKKEEPING_PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        let applied: Vec<_> = page.iter().map(|(id, last)| (id, last.version)).collect();
        let stored = store.event_ids(&applied).await?;
        for ((stream_id, Last { version, event_id }), stored) in page.iter().zip(stored) {
            let kind = match stored {
                None => MisfitKind::Ahead,
                Some(stored) if stored != event_id.uuid() => MisfitKind::OtherEvent,
                Some(_) => continue,
            };
            let stream_id = stream_id.as_str().to_owned();
            found.push(Misfit { stream_id, applied: version.get(), kind });
        }
    }
    let Some(checkpoint) = session.checkpoint(&live.ledger).await? else { return Ok(found) };
    let until = match checkpoint.replay_until {
        None => checkpoint.position,
        Some(_) => Position::START,
    };
    let behind = behind(session, store, live, (Position::START, until)).await?;
    found.extend(behind.into_iter().filter(|stream| !stream.is_parked).map(|stream| Misfit {
        stream_id: stream.stream_id.as_str().to_owned(),
        applied: stream.applied,
        kind: MisfitKind::Behind,
    }));
    Ok(found)
}
