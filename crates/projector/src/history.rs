//! Reading the event store, over whatever happens to it.

use std::time::{Duration, Instant};

use domain_events::{Event, Position};
use event_store::{Error, Session, Wanted};
use tokio::time::sleep;

use crate::stream_event::StreamEvent;

/// Events of one stream that are healed at once.
const EVENTS_AT_ONCE: u32 = 500;

/// How often to look whether a fence is decided.
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// The event store, connected when it is needed.
pub(crate) struct History {
    options: event_store::Options,
    session: Option<Session>,
}

impl History {
    /// Streams that are healed with one query.
    pub(crate) const STREAMS_AT_ONCE: usize = 50;

    pub(crate) fn new(options: event_store::Options) -> Self {
        Self { options, session: None }
    }

    /// A session, connected. Drop it with [`History::forget`] after an error.
    pub(crate) async fn session(&mut self) -> Result<&mut Session, Error> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.options).await?,
        };
        Ok(self.session.insert(session))
    }

    /// Drops the session.
    pub(crate) fn forget(&mut self) {
        self.session = None;
    }

    /// Waits until the order of all events so far is decided, and gives the last position of them.
    ///
    /// `None` when that takes longer than `patience`; who holds it up is logged.
    pub(crate) async fn decided(&mut self, patience: Duration) -> Result<Option<Position>, Error> {
        match self.wait_for_fence(patience).await {
            Ok(position) => Ok(position),
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    async fn wait_for_fence(&mut self, patience: Duration) -> Result<Option<Position>, Error> {
        let session = self.session().await?;
        let mut fence = session.take_fence().await?;
        let started = Instant::now();
        while !fence.is_decided() {
            if started.elapsed() > patience {
                for writer in session.fence_writers(&fence).await? {
                    tracing::warn!(
                        pid = writer.pid,
                        application = writer.application_name,
                        age_seconds = writer.age_seconds,
                        "an open transaction that appends events holds up reading them in order"
                    );
                }
                return Ok(None);
            }
            sleep(FENCE_PAUSE).await;
            session.refresh_fence(&mut fence).await?;
        }
        Ok(Some(fence.limit()))
    }

    /// Reads missing parts of streams: some of them, from their beginnings.
    pub(crate) async fn read(&mut self, wanted: &[Wanted]) -> Result<Vec<StreamEvent>, Error> {
        let some = &wanted[..wanted.len().min(Self::STREAMS_AT_ONCE)];
        let read = match self.session().await {
            Ok(session) => session.read_streams(some, EVENTS_AT_ONCE).await,
            Err(error) => Err(error),
        };
        match read {
            Ok(events) => Ok(of_streams(events)),
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }
}

/// Events of the store, which all have a version.
pub(crate) fn of_streams(events: Vec<Event>) -> Vec<StreamEvent> {
    events.into_iter().filter_map(|event| StreamEvent::try_from(event).ok()).collect()
}
