//! Compares a read model with the event store, and repairs it.

use std::time::Duration;

use daemon::output::counted;
use domain_events::{Position, StreamId, StreamVersion};
use projection::plan::Head;
use read_model::{Admitted, Comparison, Drift, ReadModel, Rows, Session, StreamAt};

use super::findings::{Findings, Mismatch, MismatchKind, Scope};
use super::progress::RebuildPace;
use super::{Error, Rebuilder};
use crate::error::Error as WorkError;
use crate::history::{
    Decided, Diverged, FENCE_PATIENCE, History, OneBatch, PAGE, STREAMS_AT_ONCE, Sink, Target,
    catch_up, diverged_streams, lagging_streams,
};

/// How many streams of a sample are folded before the idle session is pinged.
const SAMPLED_AT_ONCE: usize = 1_000;
/// How long a batch that runs alone waits for open transactions that append events.
const ALONE_PATIENCE: Duration = Duration::from_secs(1);

/// A running comparison.
struct Verification<'v> {
    rebuilder: &'v Rebuilder,
    session: Session,
    store: event_store::Session,
    live: ReadModel,
    /// The tables that the event store gives.
    expected: Target,
    comparisons: Vec<Comparison>,
    /// The streams to compare; `None` for all.
    sample: Option<Vec<(StreamId, StreamVersion)>>,
}

impl Rebuilder {
    /// Applies the history to separate tables and compares every row with the live tables. Live batches go on
    /// meanwhile. Rows that differ may just have changed, so they are compared again while no batch runs and
    /// both sides are at the same versions.
    ///
    /// `sample` restricts the comparison to that many streams, chosen at random. `repair` overwrites rows that
    /// differ.
    pub(crate) async fn verify(
        &self,
        sample: Option<u32>,
        repair: bool,
    ) -> Result<Findings, Error> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        session.require_tables(&live.projection, &live.ledger).await?;
        self.require_exclusive(&mut session, &live.ledger).await?;
        live.prepare(&mut session).await?;
        WorkError::require_in_service(&live)?;
        let mut store = event_store::Session::connect(&self.store).await?;
        let streams = mismatches(&mut session, &mut store, &live).await?;
        let comparisons = self.comparisons(&mut session, &live, sample.is_some()).await?;
        let (database, tables) = (&self.databases.verify, self.tables(&live.ledger));
        // An interrupted comparison may have left tables.
        session.make_database(database).await?;
        session.drop_tables(database, &tables).await?;
        for compared in &comparisons {
            session.drop_suspects(compared).await?;
        }
        let sample = match sample {
            None => None,
            Some(count) => {
                let chosen = session.some_streams(&live.ledger, count).await?;
                Some(chosen.into_iter().map(|id| (id, StreamVersion::LAST)).collect::<Vec<_>>())
            }
        };
        let scope = Scope {
            streams: session.count_streams(&live.ledger).await?,
            sampled: sample.as_ref().map(|sample| sample.len() as u64),
            tables: comparisons.iter().map(|compared| compared.table().to_owned()).collect(),
        };
        let expected = self.target(&mut session, database).await?;
        let mut verification =
            Verification { rebuilder: self, session, store, live, expected, comparisons, sample };
        let mut drift = verification.compare(repair).await?;
        let Verification { mut session, comparisons, store, expected, live, .. } = verification;
        add_streams(&mut session, &live, &mut drift).await?;
        for compared in &comparisons {
            session.drop_suspects(compared).await?;
        }
        session.drop_tables(database, &tables).await?;
        expected.close().await;
        store.close().await;
        session.close().await;
        Ok(Findings { scope, drift, streams })
    }

    /// Begins a batch that runs alone, and brings the live and the expected tables to the same position, in the
    /// order of the event store.
    async fn level_in_order<'s>(
        &self,
        (session, live): (&'s mut Session, &'s ReadModel),
        expected: &mut Target,
        store: &mut event_store::Session,
    ) -> Result<Admitted<'s>, Error> {
        let mut history = History::new(self.store.clone());
        // Decided before the batch begins: other batches must not wait behind it for open transactions.
        let until = self.decided(&mut history, session).await?;
        expected.catch_up_in_order(store, until).await?;
        let checkpoint = session.checkpoint(&live.ledger).await?;
        let mut after = checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
        let mut batch = begin_alone(session, live, expected).await?;
        // The live tables may have gone on until the batch began.
        let until = match history.decided(ALONE_PATIENCE).await? {
            Decided::UpTo(until) => until,
            Decided::HeldUp(by) => {
                batch.rollback().await?;
                return Err(Error::Work(by.into()));
            }
        };
        expected.catch_up_in_order(store, until).await?;
        while after < until {
            let categories = &live.projection.categories;
            let (events, end) = store.read_events(after, until, categories, PAGE).await?;
            OneBatch { batch: &mut batch, model: live }.apply(&events).await?;
            after = end;
        }
        Ok(batch)
    }

    async fn decided(
        &self,
        history: &mut History,
        session: &mut Session,
    ) -> Result<Position, Error> {
        loop {
            match history.decided(FENCE_PATIENCE).await? {
                Decided::UpTo(until) => return Ok(until),
                Decided::HeldUp(by) => {
                    self.report.say(&format!("waiting: {by}"));
                    session.ping().await?;
                }
            }
        }
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
                    // No handler writes this table.
                    None => continue,
                    Some(column) => Rows::OfStreams {
                        column: column.clone(),
                        streams: live.ledger.streams_table().to_owned(),
                    },
                },
            };
            let info = session.table_info(&table.name).await?;
            let expected = &self.databases.verify;
            comparisons.push(Comparison::of(&table.name, &info, expected, &rows)?);
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
            self.rebuilder.catch_up(&mut self.expected, &mut pace).await?;
        }
        self.catch_up_streams().await?;
        let mut suspects = 0;
        for compared in &self.comparisons {
            suspects += self.session.collect_suspects(compared).await?;
        }
        self.expected.reconnect_idle().await?;
        if suspects == 0 {
            return Ok(Vec::new());
        }
        report.say(&format!(
            "{} or changed just now; compared again while no batch is applied",
            counted(suspects, "row differs", "rows differ")
        ));
        self.catch_up_streams().await?;
        let Self { session, store, live, expected, .. } = self;
        let mut batch = if expected.model.is_ordered() {
            self.rebuilder.level_in_order((session, live), expected, store).await?
        } else {
            let mut batch = begin_alone(session, live, expected).await?;
            catch_up_streams(expected, store, self.sample.as_deref()).await?;
            let lagging = match &self.sample {
                Some(sample) => sample.iter().map(|(stream_id, _)| stream_id.clone()).collect(),
                None => {
                    lagging_live_streams(expected, store, &self.rebuilder.databases.live).await?
                }
            };
            catch_up_with(&mut batch, live, expected, store, &lagging).await?;
            batch
        };
        let mut drift = Vec::new();
        for compared in &self.comparisons {
            drift.extend(batch.recheck(compared).await?);
        }
        if repair && !drift.is_empty() {
            // Their rows would then be those of another version than the bookkeeping says.
            let uneven = batch.uneven_stream(&self.rebuilder.databases.verify).await?;
            if let Some(stream_id) = uneven {
                batch.rollback().await?;
                let projection = live.name().to_owned();
                return Err(Error::Uneven { projection, stream_id });
            }
            batch.repair(&self.comparisons).await?;
        }
        batch.commit().await?;
        Ok(drift)
    }

    async fn catch_up_streams(&mut self) -> Result<(), Error> {
        if self.expected.model.is_ordered() {
            if let Some(checkpoint) = self.session.checkpoint(&self.live.ledger).await? {
                self.expected.catch_up_in_order(&mut self.store, checkpoint.position).await?;
            }
            return Ok(());
        }
        let Some(sample) = &self.sample else {
            return Ok(self.expected.catch_up_streams(&mut self.store).await?);
        };
        for part in sample.chunks(SAMPLED_AT_ONCE) {
            catch_up(&mut self.expected, &mut self.store, part).await?;
            self.session.ping().await?;
        }
        Ok(())
    }
}

/// Begins a batch that runs alone, unless an event was skipped since the expected tables were begun.
async fn begin_alone<'s>(
    session: &'s mut Session,
    live: &'s ReadModel,
    expected: &Target,
) -> Result<Admitted<'s>, Error> {
    let mut batch = live.begin_alone(session).await?;
    if *expected.model.skips() != batch.skips().await? {
        batch.rollback().await?;
        let projection = live.name().to_owned();
        return Err(Error::SkippedMeanwhile { projection });
    }
    Ok(batch)
}

async fn catch_up_streams(
    expected: &mut Target,
    store: &mut event_store::Session,
    sample: Option<&[(StreamId, StreamVersion)]>,
) -> Result<(), Error> {
    match sample {
        Some(sample) => catch_up(expected, store, sample).await.map(drop)?,
        None => expected.catch_up_streams(store).await?,
    }
    Ok(())
}

/// The streams of which the live tables may have applied fewer events than the expected ones.
async fn lagging_live_streams(
    expected: &mut Target,
    store: &mut event_store::Session,
    live: &str,
) -> Result<Vec<StreamId>, Error> {
    let after = expected.position().await?;
    let end = store.take_fence().await?.limit();
    let (session, model) = expected.session();
    let mut lagging = session.streams_lagging_in(live, &model.ledger).await?;
    let heads = store.stream_heads(after, end, &model.projection.categories).await?;
    lagging.extend(heads.into_iter().map(|head| head.stream_id));
    lagging.sort_unstable();
    lagging.dedup();
    Ok(lagging)
}

/// Brings streams of the live tables to the versions of the expected tables, within a batch.
async fn catch_up_with(
    batch: &mut Admitted<'_>,
    live: &ReadModel,
    expected: &mut Target,
    store: &mut event_store::Session,
    streams: &[StreamId],
) -> Result<(), Error> {
    for page in streams.chunks(STREAMS_AT_ONCE) {
        let names: Vec<&StreamId> = page.iter().collect();
        let heads = expected.heads(&names).await?;
        let version = |(stream_id, head): (StreamId, Head)| Some((stream_id, head.last?.version));
        let wanted: Vec<_> = heads.into_iter().filter_map(version).collect();
        catch_up(&mut OneBatch { batch, model: live }, store, &wanted).await?;
    }
    Ok(())
}

/// Adds the stream and its version to each row that belongs to one stream.
async fn add_streams(
    session: &mut Session,
    live: &ReadModel,
    drift: &mut [Drift],
) -> Result<(), Error> {
    let Ok(columns) = live.forms().stream_columns(&live.projection) else { return Ok(()) };
    let stream = |row: &Drift| StreamId::new(row.key(columns.get(&row.table)?)?).ok();
    for page in drift.chunks_mut(STREAMS_AT_ONCE) {
        let streams: Vec<Option<StreamId>> = page.iter().map(stream).collect();
        let known: Vec<&StreamId> = streams.iter().flatten().collect();
        let heads = session.heads(&live.ledger, &known).await?;
        for (row, stream_id) in page.iter_mut().zip(&streams) {
            let Some(stream_id) = stream_id else { continue };
            let last = heads.get(stream_id).and_then(|head| head.last);
            row.stream = last.map(|last| StreamAt {
                stream_id: stream_id.as_str().to_owned(),
                version: last.version.get(),
            });
        }
    }
    Ok(())
}

/// The streams whose bookkeeping contradicts the event store.
async fn mismatches(
    session: &mut Session,
    store: &mut event_store::Session,
    live: &ReadModel,
) -> Result<Vec<Mismatch>, Error> {
    let diverged = diverged_streams(session, store, live, None).await?;
    let mismatch = |Diverged { stream_id, version: applied, stored, .. }| {
        let kind = stored.map_or(MismatchKind::NotStored, |_| MismatchKind::OtherEvent);
        Mismatch { stream_id, applied, kind }
    };
    let mut found: Vec<_> = diverged.into_iter().map(mismatch).collect();
    let Some(checkpoint) = session.checkpoint(&live.ledger).await? else { return Ok(found) };
    let until = match checkpoint.replay_until {
        None => checkpoint.position,
        Some(_) => Position::START,
    };
    let lagging = lagging_streams(session, store, live, (Position::START, until)).await?;
    found.extend(lagging.into_iter().filter(|stream| !stream.is_parked).map(|stream| Mismatch {
        stream_id: stream.stream_id.as_str().to_owned(),
        applied: stream.applied,
        kind: MismatchKind::Lagging,
    }));
    Ok(found)
}
