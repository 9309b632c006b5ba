//! An event of a stream: the only kind that a projection applies.

use domain_events::{Event, Origin, StreamId, StreamVersion};

/// An event with its place in its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamEvent {
    /// The stream.
    pub(crate) stream_id: StreamId,
    /// The number of the event within the stream.
    pub(crate) version: StreamVersion,
    /// The event.
    pub(crate) event: Event,
}

impl TryFrom<Event> for StreamEvent {
    type Error = Unversioned;

    fn try_from(event: Event) -> Result<Self, Unversioned> {
        match &event.origin {
            Origin::Stream { stream_id, version, .. } => {
                Ok(Self { stream_id: stream_id.clone(), version: *version, event })
            }
            Origin::Unversioned { .. } => Err(Unversioned),
        }
    }
}

/// The event has no version: it cannot be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("header stream_version is missing: a projection applies events of streams only")]
pub(crate) struct Unversioned;
