//! Reading the event store: its decided end, missing parts of streams, and history.

mod catch_up;
mod lag;
mod replay;

use std::time::{Duration, Instant};

use domain_events::{Position, StoredEvent, StreamRange};
use event_store::{Error, Fence, Session};
use tokio::time::sleep;

use crate::error::OpenWriters;

pub(crate) use catch_up::{OneBatch, STREAMS_AT_ONCE, Sink, catch_up};
pub(crate) use lag::{Behind, Lag, behind, lag, published};
pub(crate) use replay::{FENCE_PATIENCE, PAGE, Pace, Span, Target, replay};

/// Events of one stream that are healed at once.
const EVENTS_AT_ONCE: u32 = 500;

/// How often to look whether a fence is decided.
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// The event store, connected when it is needed.
pub(crate) struct History {
    options: event_store::Options,
    session: Option<Session>,
    /// A fence that open transactions hold up. A new one would have new ones to wait for.
    fence: Option<Fence>,
}

impl History {
    /// Streams that are healed with one query.
    pub(crate) const STREAMS_AT_ONCE: usize = 50;

    pub(crate) fn new(options: event_store::Options) -> Self {
        Self { options, session: None, fence: None }
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
        self.fence = None;
    }

    /// Waits until the order of all events so far is decided, for no longer than `patience`. To be asked
    /// again when open transactions take longer.
    pub(crate) async fn decided(&mut self, patience: Duration) -> Result<Decided, Error> {
        let decided = self.wait_for_fence(patience).await;
        if decided.is_err() {
            self.forget();
        }
        decided
    }

    async fn wait_for_fence(&mut self, patience: Duration) -> Result<Decided, Error> {
        let fence = self.fence.take();
        let session = self.session().await?;
        let mut fence = match fence {
            Some(fence) => fence,
            None => session.take_fence().await?,
        };
        let started = Instant::now();
        session.refresh_fence(&mut fence).await?;
        while !fence.is_decided() {
            if started.elapsed() > patience {
                let writers = session.fence_writers(&fence).await?;
                self.fence = Some(fence);
                return Ok(Decided::HeldUp(OpenWriters(writers)));
            }
            sleep(FENCE_PAUSE).await;
            session.refresh_fence(&mut fence).await?;
        }
        Ok(Decided::UpTo(fence.limit()))
    }

    /// Reads missing parts of streams: some of them, from their beginnings.
    pub(crate) async fn read(&mut self, wanted: &[StreamRange]) -> Result<Vec<StoredEvent>, Error> {
        let some = &wanted[..wanted.len().min(Self::STREAMS_AT_ONCE)];
        let read = match self.session().await {
            Ok(session) => session.read_streams(some, EVENTS_AT_ONCE).await,
            Err(error) => Err(error),
        };
        if read.is_err() {
            self.forget();
        }
        read
    }
}

/// Whether the order of the events so far is decided.
pub(crate) enum Decided {
    /// It is, up to this position.
    UpTo(Position),
    /// Open transactions hold it up.
    HeldUp(OpenWriters),
}
