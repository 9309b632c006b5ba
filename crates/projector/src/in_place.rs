//! Folding single streams anew in the live tables.

use domain_events::{Event, StreamId, StreamVersion};
use event_store::Wanted;
use serde::Serialize;

use crate::apply::{ReadModel, apply_part};
use crate::mysql::{ParkedStream, Session};
use crate::rebuild::Rebuilder;
use crate::trouble::Trouble;

/// Events that are applied with one step of the bookkeeping.
const PAGE: u32 = 500;

/// A stream that was folded anew.
#[derive(Debug, Serialize)]
pub(crate) struct Folded {
    /// The stream.
    pub(crate) stream_id: String,
    /// How many of its events were applied; 0 when the event store does not have it.
    pub(crate) events: usize,
    /// Why it cannot go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parked: Option<ParkedStream>,
}

impl Rebuilder {
    /// Removes what streams have in the read model and folds them anew, each in one transaction: readers
    /// see the old rows or the new ones.
    ///
    /// # Errors
    ///
    /// [`Trouble::NotOwned`] when rows may belong to several streams; then nothing is changed.
    pub(crate) async fn fold_in_place(
        &self,
        streams: &[StreamId],
        mut each: impl FnMut(&Folded),
    ) -> Result<Vec<Folded>, Trouble> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        session.require_tables(&self.projection, &live.ledger).await?;
        live.prepare(&mut session).await?;
        let mut store = event_store::Session::connect(&self.store).await?;
        let mut all = Vec::new();
        for stream_id in streams {
            let folded = fold(&mut session, &mut store, &live, stream_id).await?;
            each(&folded);
            all.push(folded);
        }
        store.close().await;
        session.close().await;
        Ok(all)
    }
}

async fn fold(
    session: &mut Session,
    store: &mut event_store::Session,
    live: &ReadModel,
    stream_id: &StreamId,
) -> Result<Folded, Trouble> {
    let forms = live.forms();
    let columns = forms.stream_columns(&live.projection).map_err(|reason| {
        let projection = live.name().to_owned();
        Trouble::NotOwned { projection, reason }
    })?;
    let (mut batch, gate) = session.begin(&live.ledger, forms.passage()).await?;
    live.admit(&mut batch, &gate).await?;
    // Deliveries of the stream wait from here on.
    batch.lock(&[stream_id], &[]).await?;
    for (table, column) in &columns {
        batch.delete_rows(table, column, stream_id).await?;
    }
    batch.forget(stream_id).await?;
    let mut folded = Folded { stream_id: stream_id.to_string(), events: 0, parked: None };
    let mut from = StreamVersion::FIRST;
    loop {
        let to =
            StreamVersion::new(from.get() + i64::from(PAGE) - 1).unwrap_or(StreamVersion::LAST);
        let wanted = Wanted { stream_id: stream_id.clone(), from, to };
        let events = store.read_streams(&[wanted], PAGE).await?;
        let page: Vec<&Event> = events.iter().collect();
        if page.is_empty() {
            break;
        }
        let part = apply_part(&mut batch, live, &page).await?;
        folded.events += part.applied;
        folded.parked = part.parked;
        if folded.parked.is_some() {
            break;
        }
        from = to.next();
    }
    batch.commit().await?;
    Ok(folded)
}
