//! Reads the event store: its decided end, missing events of streams, and whole histories.

mod catch_up;
mod divergence;
mod in_order;
mod lag;
mod replay;

use std::time::{Duration, Instant};

use domain_events::{Position, StoredEvent, StreamId, StreamRange, StreamVersion};
use event_store::{Error, Fence, Session};
use tokio::time::sleep;
use uuid::Uuid;

use crate::error::OpenWriters;

pub(crate) use catch_up::{OneBatch, STREAMS_AT_ONCE, Sink, catch_up};
pub(crate) use divergence::{
    Diverged, common_history, diverged_streams, end_divergence, require_same_history,
};
pub(crate) use in_order::{apply_in_order, follow_in_order};
pub(crate) use lag::{Lag, LaggingStream, lag, lagging_streams, lags, published};
pub(crate) use replay::{FENCE_PATIENCE, PAGE, Pace, Span, Target, landmark, replay};

/// The most events of one stream in one read.
const EVENTS_AT_ONCE: u32 = 500;

/// How often to check whether a fence is decided.
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// The event store. It connects on first use.
pub(crate) struct History {
    options: event_store::Options,
    session: Option<Session>,
    /// A fence that still waits for open transactions. A new fence would have to wait for later ones too.
    fence: Option<Fence>,
}

impl History {
    /// The most streams in one read.
    pub(crate) const STREAMS_AT_ONCE: usize = 50;

    pub(crate) fn new(options: event_store::Options) -> Self {
        Self { options, session: None, fence: None }
    }

    /// Returns a connected session. After an error, call [`History::forget`].
    pub(crate) async fn session(&mut self) -> Result<&mut Session, Error> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.options).await?,
        };
        Ok(self.session.insert(session))
    }

    /// Drops the session and the fence.
    pub(crate) fn forget(&mut self) {
        self.session = None;
        self.fence = None;
    }

    /// Waits, for `patience` at most, until the order of all events so far is decided. If open transactions
    /// take longer, call it again.
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

    /// The event id at each place.
    pub(crate) async fn event_ids(
        &mut self,
        places: &[(&StreamId, StreamVersion)],
    ) -> Result<Vec<Option<Uuid>>, Error> {
        let read = match self.session().await {
            Ok(session) => session.event_ids(places).await,
            Err(error) => Err(error),
        };
        if read.is_err() {
            self.forget();
        }
        read
    }

    /// Reads the beginnings of the wanted ranges, for the first [`Self::STREAMS_AT_ONCE`] of them.
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

/// Whether the order of the events so far is decided. It is decided up to a position if no open transaction can
/// still add an event before that position.
pub(crate) enum Decided {
    /// The order is decided up to this position.
    UpTo(Position),
    /// These open transactions can still add events.
    HeldUp(OpenWriters),
}
