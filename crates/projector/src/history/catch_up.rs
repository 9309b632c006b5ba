//! Brings single streams up to date from the event store.
//!
//! Retries of parked streams, streams folded in place, comparisons and rebuilds all use this loop.
//!
//! **Invariant:** in live tables it applies through an [`Admitted`] batch, so never with handlers that do not
//! belong to these tables. (`projector_retry::a_retry_does_not_apply_previous_handlers_…`)

use domain_events::{StoredEvent, StreamId, StreamRange, StreamVersion};
use projection::plan::Heads;
use read_model::{Admitted, Part, ReadModel, apply_part};

use crate::error::Error;

/// The most streams in one read.
pub(crate) const STREAMS_AT_ONCE: usize = 100;
/// The most events of each stream in one read of several streams.
const EVENTS_OF_EACH: u32 = 100;
/// The most events in one read of a single stream.
const EVENTS_OF_ONE: u32 = 500;

/// Tables to which events are applied.
pub(crate) trait Sink {
    /// Returns the head of each stream: its last applied event, and whether it is parked. `streams` must be
    /// sorted.
    async fn heads(&mut self, streams: &[&StreamId]) -> Result<Heads, Error>;

    /// Applies events. The events of each stream are in order.
    async fn apply(&mut self, events: &[StoredEvent]) -> Result<Part, Error>;
}

/// The live tables, within one transaction.
pub(crate) struct OneBatch<'b, 's> {
    pub(crate) batch: &'b mut Admitted<'s>,
    pub(crate) model: &'b ReadModel,
}

impl Sink for OneBatch<'_, '_> {
    async fn heads(&mut self, streams: &[&StreamId]) -> Result<Heads, Error> {
        Ok(self.batch.lock(streams).await?)
    }

    async fn apply(&mut self, events: &[StoredEvent]) -> Result<Part, Error> {
        let events: Vec<&StoredEvent> = events.iter().collect();
        Ok(apply_part(self.batch, self.model, &events).await?)
    }
}

/// Applies the events of streams that the tables lack, up to the given version of each stream. A stream that
/// parks stops there.
///
/// # Errors
///
/// When a server fails; [`Error::Hole`] if the event store lacks a version of a stream, but has later ones.
pub(crate) async fn catch_up(
    sink: &mut impl Sink,
    store: &mut event_store::Session,
    streams: &[(StreamId, StreamVersion)],
) -> Result<Part, Error> {
    let mut total = Part::default();
    let events_of_each = if streams.len() == 1 { EVENTS_OF_ONE } else { EVENTS_OF_EACH };
    for page in streams.chunks(STREAMS_AT_ONCE) {
        let mut names: Vec<&StreamId> = page.iter().map(|(stream_id, _)| stream_id).collect();
        names.sort_unstable();
        loop {
            // `OneBatch` locks the streams before they are read, so that concurrent deliveries wait.
            let heads = sink.heads(&names).await?;
            let wanted: Vec<StreamRange> =
                page.iter().filter_map(|(id, version)| missing(&heads, id, *version)).collect();
            if wanted.is_empty() {
                break;
            }
            let events = store.read_streams(&wanted, events_of_each).await?;
            if events.is_empty() {
                break;
            }
            let part = sink.apply(&events).await?;
            if part.applied == 0 && part.parked.is_none() {
                let stream_id = events[0].stream_id.clone();
                let version = heads.get(&stream_id).copied().unwrap_or_default().next();
                return Err(Error::Hole { stream_id, version });
            }
            total.applied += part.applied;
            total.parked = part.parked.or(total.parked);
        }
    }
    Ok(total)
}

/// The range of events that the tables lack of a stream, up to a version. `None` for a parked stream, because
/// none of its events can be applied.
fn missing(heads: &Heads, stream_id: &StreamId, to: StreamVersion) -> Option<StreamRange> {
    let head = heads.get(stream_id).copied().unwrap_or_default();
    let (stream_id, from) = (stream_id.clone(), head.next());
    (from <= to && !head.is_parked).then_some(StreamRange { stream_id, from, to })
}
