//! Rebuilds single streams in the live tables.

use domain_events::{StreamId, StreamVersion};
use read_model::{ParkedStream, Part, ReadModel, Session};
use serde::Serialize;

use super::{Error, Rebuilder};
use crate::error::Error as WorkError;
use crate::history::{OneBatch, catch_up};

/// A stream that was rebuilt.
#[derive(Debug, Serialize)]
pub(crate) struct Folded {
    /// The stream.
    pub(crate) stream_id: String,
    /// The number of its events that were applied; 0 if the event store does not have the stream.
    pub(crate) events: usize,
    /// The event that could not be applied, if the stream was parked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parked: Option<ParkedStream>,
}

impl Rebuilder {
    /// Removes the rows of each stream and applies its events again, in one transaction: readers see either the
    /// previous rows or the new ones.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwned`] if a row may belong to several streams; then nothing is changed.
    pub(crate) async fn fold_in_place(
        &self,
        streams: &[StreamId],
        mut each: impl FnMut(&Folded),
    ) -> Result<Vec<Folded>, Error> {
        let live = self.model();
        let mut session = Session::connect(&self.mysql).await?;
        session.require_tables(&live.projection, &live.ledger).await?;
        live.prepare(&mut session).await?;
        WorkError::require_in_service(&live)?;
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
) -> Result<Folded, Error> {
    let columns = live.forms().stream_columns(&live.projection).map_err(|reason| {
        let projection = live.name().to_owned();
        Error::NotOwned { projection, reason }
    })?;
    let mut batch = live.begin_command(session).await?;
    // Deliveries of the stream wait from here on.
    batch.lock(&[stream_id]).await?;
    for (table, column) in &columns {
        batch.delete_rows(table, column, stream_id).await?;
    }
    batch.forget(stream_id).await?;
    let mut sink = OneBatch { batch: &mut batch, model: live };
    let all = [(stream_id.clone(), StreamVersion::LAST)];
    let Part { applied, parked } = catch_up(&mut sink, store, &all).await?;
    batch.commit().await?;
    Ok(Folded { stream_id: stream_id.to_string(), events: applied, parked })
}
