//! Proving that a read model is right.

use domain_events::{Event, StreamId};
use event_store::Wanted;

use crate::apply::{ReadModel, apply_part};
use crate::commands::say;
use crate::mysql::{Batch, Comparison, Drift, Passage, Session, all_tables};
use crate::rebuild::{EVENTS_AT_ONCE, Rebuilder, STREAMS_AT_ONCE, missing};
use crate::trouble::Trouble;

impl Rebuilder {
    /// Folds the history beside the live tables and compares every row. Live batches go on meanwhile,
    /// but for the moment in which rows that differ are looked at again, both at the same versions.
    ///
    /// Gives the differences; with `repair`, the rows are made right.
    pub(crate) async fn verify(&self, repair: bool) -> Result<Vec<Drift>, Trouble> {
        let live = ReadModel::new(self.projection.clone());
        let mut session = Session::connect(&self.mysql).await?;
        session.require_tables(&self.projection, &live.ledger).await?;
        live.prepare(&mut session).await?;
        self.own(&mut session, &live).await?;
        let (database, tables) =
            (&self.databases.verify, all_tables(&self.projection, &live.ledger));
        let mut comparisons = Vec::new();
        for table in &self.projection.tables {
            let info = session.table_info(&table.name).await?;
            comparisons.push(Comparison::of(&table.name, &info, database)?);
        }
        // What an interrupted one may have left.
        let (_, empty) = session.shadow(&self.mysql, database).await?;
        empty.close().await;
        session.drop_tables(database, &tables).await?;
        for compared in &comparisons {
            session.drop_suspects(compared).await?;
        }
        let (model, mut right) = self.shadow(&mut session, database).await?;
        self.catch_up(&mut right, &model).await?;
        let mut suspects = 0;
        for compared in &comparisons {
            suspects += session.collect_suspects(compared).await?;
        }
        let mut drift = Vec::new();
        if suspects > 0 {
            say(&format!(
                "{suspects} rows differ or move; looking again while no batch is applied"
            ));
            let mut store = event_store::Session::connect(&self.store).await?;
            self.fold_the_rest(&mut right, &model, &mut store).await?;
            let (mut batch, _gate) = session.begin(&live.ledger, Passage::Alone).await?;
            self.fold_the_rest(&mut right, &model, &mut store).await?;
            self.level_within(&mut batch, &live, &mut right, &model, &mut store).await?;
            for compared in &comparisons {
                drift.extend(batch.look_again(compared).await?);
            }
            if repair && !drift.is_empty() {
                for compared in &comparisons {
                    batch.repair(compared).await?;
                }
            }
            batch.commit().await?;
            store.close().await;
        }
        for compared in &comparisons {
            session.drop_suspects(compared).await?;
        }
        session.drop_tables(database, &tables).await?;
        right.close().await;
        session.close().await;
        Ok(drift)
    }

    /// Brings the live tables to the versions of the other ones, within a batch.
    async fn level_within(
        &self,
        batch: &mut Batch<'_>,
        live: &ReadModel,
        right: &mut Session,
        model: &ReadModel,
        store: &mut event_store::Session,
    ) -> Result<(), Trouble> {
        let after = right.checkpoint(&model.ledger).await?;
        let after = after.map_or(domain_events::Position::START, |found| found.position);
        let end = store.take_fence().await?.limit();
        let mut behind: Vec<StreamId> =
            right.streams_behind_of(&self.databases.live, &live.ledger).await?;
        let heads = store.stream_heads(after, end, &self.projection.categories).await?;
        behind.extend(heads.into_iter().map(|head| head.stream_id));
        behind.sort_unstable();
        behind.dedup();
        for page in behind.chunks(STREAMS_AT_ONCE) {
            let streams: Vec<&StreamId> = page.iter().collect();
            let there = right.heads(&model.ledger, &streams).await?;
            loop {
                let here = batch.lock(&streams, &[]).await?;
                let to = |stream_id| there.get(stream_id).and_then(|head| head.last);
                let wanted: Vec<Wanted> = page
                    .iter()
                    .filter_map(|id| missing(&here.heads, id, to(id)?.version))
                    .collect();
                if wanted.is_empty() {
                    break;
                }
                let events = store.read_streams(&wanted, EVENTS_AT_ONCE).await?;
                if events.is_empty() {
                    break;
                }
                let events: Vec<&Event> = events.iter().collect();
                apply_part(batch, live, &events).await?;
            }
        }
        Ok(())
    }
}
