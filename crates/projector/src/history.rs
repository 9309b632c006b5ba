//! Reading the event store, over whatever happens to it.

use std::time::{Duration, Instant};

use domain_events::{Event, Position};
use event_store::{Error, Fence, Session, Wanted, Writer};
use tokio::time::sleep;

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

    /// Waits until the order of all events so far is decided, and gives the last position of them.
    ///
    /// When that takes longer than `patience`, gives who holds it up, to be asked again.
    pub(crate) async fn decided(
        &mut self,
        patience: Duration,
    ) -> Result<Result<Position, OpenWriters>, Error> {
        match self.wait_for_fence(patience).await {
            Ok(decided) => Ok(decided),
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    async fn wait_for_fence(
        &mut self,
        patience: Duration,
    ) -> Result<Result<Position, OpenWriters>, Error> {
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
                return Ok(Err(OpenWriters(writers)));
            }
            sleep(FENCE_PAUSE).await;
            session.refresh_fence(&mut fence).await?;
        }
        Ok(Ok(fence.limit()))
    }

    /// Reads missing parts of streams: some of them, from their beginnings.
    pub(crate) async fn read(&mut self, wanted: &[Wanted]) -> Result<Vec<Event>, Error> {
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

/// Transactions that append events and hold up reading them in order.
#[derive(Debug, thiserror::Error)]
#[error("open transactions that append events hold up reading them in order: {}", list(.0))]
pub(crate) struct OpenWriters(Vec<Writer>);

fn list(writers: &[Writer]) -> String {
    let tell = |writer: &Writer| {
        let pid = writer.pid.map_or_else(|| "prepared".to_owned(), |pid| format!("pid {pid}"));
        let age = writer.age_seconds.map_or_else(String::new, |age| format!(" for {age:.0} s"));
        format!("{pid} ({}){age}", writer.application_name)
    };
    writers.iter().map(tell).collect::<Vec<_>>().join(", ")
}
