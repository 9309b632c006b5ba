//! Bringing streams up to date from the event store.
//!
//! The one loop for a parked stream that goes on, for streams folded in place, for comparisons and for
//! rebuilds. **Invariant:** it applies through an [`Admitted`] batch, so never with handlers that the
//! tables in service are not for. (`projector_rebuild::a_retry_does_not_apply_previous_handlers_…`)

use domain_events::{StoredEvent, StreamId, StreamRange, StreamVersion};
use projection::plan::Heads;
use read_model::{Admitted, Part, ReadModel, apply_part};

use crate::error::Error;

/// Streams that are read at once.
pub(crate) const STREAMS_AT_ONCE: usize = 100;
/// Events of each stream that are read at once, where there are many streams, and where there is one.
const EVENTS_OF_EACH: u32 = 100;
const EVENTS_OF_ONE: u32 = 500;

/// Tables to which events are applied.
pub(crate) trait Sink {
    /// Where streams stand. The streams must be sorted.
    async fn heads(&mut self, streams: &[&StreamId]) -> Result<Heads, Error>;

    /// Applies events, each stream in order.
    async fn apply(&mut self, events: &[StoredEvent]) -> Result<Part, Error>;
}

/// Tables in service, within one transaction.
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

/// Applies what the event store has of streams, up to a version of each or as far as they go. A stream
/// that parks stays where it is.
///
/// # Errors
///
/// When a server fails.
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
            // In one batch, the streams are locked before they are read: later deliveries come after.
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
            total.applied += part.applied;
            total.parked = part.parked.or(total.parked);
        }
    }
    Ok(total)
}

/// What tables lack of a stream up to a version. A parked stream lacks nothing that could be applied.
fn missing(heads: &Heads, stream_id: &StreamId, to: StreamVersion) -> Option<StreamRange> {
    let head = heads.get(stream_id).copied().unwrap_or_default();
    let (stream_id, from) = (stream_id.clone(), head.next());
    (from <= to && !head.is_parked).then_some(StreamRange { stream_id, from, to })
}
