//! Several writers at once, each stream in order.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemon::backoff::Backoff;
use daemon::{Exit, Failure};
use domain_events::{Json, StreamId};
use event_store::{Append, Error, Options, Session};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Attempts for a batch while PostgreSQL is away; together they take about a minute.
const ATTEMPTS: u32 = 30;

/// An event to append, as the JSON that `append_to_stream` takes.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) stream_id: StreamId,
    pub(crate) json: String,
    /// Its line in the file, for messages; `None` for a generated event.
    pub(crate) line: Option<u64>,
}

/// Several writers, which append all events that they are given.
pub(crate) struct Writers {
    inputs: Vec<Sender<NewEvent>>,
    tasks: JoinSet<Result<(), Failure>>,
    appended: Arc<AtomicU64>,
}

/// Distributes events to the writers: all events of a stream go to the same writer.
#[derive(Clone)]
pub(crate) struct Input(Vec<Sender<NewEvent>>);

impl Writers {
    /// Connects writers. Each appends at most `batch` events in one transaction.
    pub(crate) async fn start(
        options: &Options,
        writers: usize,
        batch: usize,
    ) -> Result<Self, Failure> {
        let appended = Arc::new(AtomicU64::new(0));
        let (mut inputs, mut tasks) = (Vec::new(), JoinSet::new());
        for _ in 0..writers {
            let session = connect(options).await?;
            let (sender, receiver) = channel(2 * batch);
            inputs.push(sender);
            let options = options.clone();
            let appended = Arc::clone(&appended);
            tasks.spawn(Writer { options, session: Some(session), appended }.run(receiver, batch));
        }
        Ok(Self { inputs, tasks, appended })
    }

    /// The input for events. Drop it after the last one.
    pub(crate) fn input(&mut self) -> Input {
        Input(std::mem::take(&mut self.inputs))
    }

    /// The number of events appended so far.
    pub(crate) fn appended(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.appended)
    }

    /// Waits until everything is appended.
    ///
    /// # Errors
    ///
    /// The error of the first writer that fails.
    pub(crate) async fn finish(mut self) -> Result<u64, Failure> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended =
                ended.map_err(|error| Failure::from(anyhow::Error::new(error))).and_then(|ok| ok);
            result = result.and(ended);
        }
        result.map(|()| self.appended.load(Ordering::Relaxed))
    }
}

impl Input {
    /// Hands an event over. `false` if its writer has failed.
    pub(crate) async fn send(&self, event: NewEvent) -> bool {
        self.writer_of(&event).send(event).await.is_ok()
    }

    /// The same, from a thread that may block.
    pub(crate) fn blocking_send(&self, event: NewEvent) -> bool {
        self.writer_of(&event).blocking_send(event).is_ok()
    }

    fn writer_of(&self, event: &NewEvent) -> &Sender<NewEvent> {
        let mut hasher = DefaultHasher::new();
        event.stream_id.hash(&mut hasher);
        let writers = self.0.len() as u64;
        let index = usize::try_from(hasher.finish() % writers).unwrap_or(0);
        &self.0[index]
    }
}

struct Writer {
    options: Options,
    session: Option<Session>,
    appended: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, mut input: Receiver<NewEvent>, batch: usize) -> Result<(), Failure> {
        let mut events = Vec::with_capacity(batch);
        while input.recv_many(&mut events, batch).await > 0 {
            self.append_all(&events).await?;
            events.clear();
        }
        Ok(())
    }

    /// Appends a batch. If one of its events is refused, appends the events before it.
    async fn append_all(&mut self, events: &[NewEvent]) -> Result<(), Failure> {
        match self.append(&by_stream(events)).await {
            Err(failure) if failure.exit == Exit::Data && events.len() > 1 => {
                for event in events {
                    self.append(&by_stream(slice::from_ref(event)))
                        .await
                        .map_err(|failure| at_line(failure, event))?;
                    self.appended.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
            Err(failure) => Err(at_line(failure, &events[0])),
            Ok(()) => {
                self.appended.fetch_add(events.len() as u64, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Appends a batch, again after a lost connection: the ids make repetition harmless.
    async fn append(&mut self, batch: &[Append]) -> Result<(), Failure> {
        let mut backoff = Backoff::reconnect(Duration::from_secs(4));
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_append(batch).await {
                Ok(()) => return Ok(()),
                Err(error @ Error::Refused { .. }) => return Err(Failure::new(Exit::Data, error)),
                Err(error) if attempt == ATTEMPTS || error.is_configuration() => {
                    return Err(failure(error));
                }
                Err(_) => {
                    self.session = None;
                    sleep(backoff.failed()).await;
                }
            }
        }
    }

    async fn try_append(&mut self, batch: &[Append]) -> Result<(), Error> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.options).await?,
        };
        self.session.insert(session).append(batch).await
    }
}

async fn connect(options: &Options) -> Result<Session, Failure> {
    let mut session = Session::connect(options).await.map_err(failure)?;
    session.require_complete().await.map_err(failure)?;
    Ok(session)
}

fn failure(error: Error) -> Failure {
    let exit = match &error {
        Error::Login { .. } => Exit::Login,
        Error::Unreachable { .. }
        | Error::Timeout { .. }
        | Error::NotPrimary { .. }
        | Error::Subscriber { .. }
        | Error::PositionsBehind { .. } => Exit::Unavailable,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// Names the refused line, and says that the lines before it are imported.
fn at_line(failure: Failure, event: &NewEvent) -> Failure {
    match event.line {
        Some(line) if failure.exit == Exit::Data => {
            let context = format!(
                "line {line} is refused; the lines before it are imported: fix it and import the \
                 file again to continue"
            );
            Failure::new(Exit::Data, failure.error.context(context))
        }
        _ => failure,
    }
}

/// One append for each stream, its events in order.
fn by_stream(events: &[NewEvent]) -> Vec<Append> {
    let mut order = Vec::new();
    let mut streams: HashMap<StreamId, Vec<String>> = HashMap::new();
    for event in events {
        let known = streams.entry(event.stream_id.clone()).or_default();
        if known.is_empty() {
            order.push(event.stream_id.clone());
        }
        known.push(event.json.clone());
    }
    order
        .into_iter()
        .map(|stream_id| {
            let events = streams.remove(&stream_id).unwrap_or_default();
            Append { events: Json::from_database(format!("[{}]", events.join(","))), stream_id }
        })
        .collect()
}
