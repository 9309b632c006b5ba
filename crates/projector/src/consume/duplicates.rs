//! Compares events that counted as duplicates with the event store.
//!
//! The bookkeeping has the id of the last applied event of a stream only. A message with a lower version may
//! be another event: of another program, or of a stream that was deleted and appended again. So the messages
//! are acknowledged at once, and their ids are compared later, many at a time. A flood of redelivered messages
//! therefore costs two statements for each [`PAGE`] events, and delays nothing.
//!
//! It does not compare what is left when the consumer closes. `verify` finds such streams too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use daemon::backoff::Backoff;
use domain_events::{EventId, EventType, Position, StoredEvent, StreamId, StreamVersion};
use projection::plan::{Contradiction, Last, Stored, contradiction};
use read_model::{ParkKind, ParkedStream, ReadModel, Session};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::context::Context;
use crate::error::Error;
use crate::history::History;

/// How long to collect events before they are compared.
const COLLECT: Duration = Duration::from_millis(200);
/// The most events that are compared at once.
const PAGE: usize = 1_000;
/// The most events that may wait. More would mean that the event store has been away for long.
const LIMIT: usize = 20_000;

/// An event that counted as a duplicate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Received {
    stream_id: StreamId,
    version: StreamVersion,
    event_id: EventId,
    event_type: EventType,
    position: Position,
}

/// The duplicates of one queue that wait to be compared.
pub(super) struct Duplicates {
    waiting: HashSet<Received>,
    /// The task that compares; at most one.
    comparing: JoinSet<Comparison>,
    /// `None` while the task runs.
    servers: Option<Servers>,
    due: Instant,
    backoff: Backoff,
    /// Whether events were left out because too many waited.
    overflowed: bool,
}

/// The connections of the task.
struct Servers {
    mysql: Option<Session>,
    history: History,
}

/// The result of the task.
pub(super) struct Comparison {
    servers: Servers,
    page: Vec<Received>,
    result: Result<(), Error>,
}

impl Duplicates {
    pub(super) fn new(history: History, retry_max: Duration) -> Self {
        Self {
            waiting: HashSet::new(),
            comparing: JoinSet::new(),
            servers: Some(Servers { mysql: None, history }),
            due: Instant::now(),
            backoff: Backoff::reconnect(retry_max),
            overflowed: false,
        }
    }

    /// Adds an event that counted as a duplicate.
    pub(super) fn push(&mut self, event: &StoredEvent) {
        if self.waiting.len() >= LIMIT {
            if !std::mem::replace(&mut self.overflowed, true) {
                tracing::warn!(
                    "more than {LIMIT} repeated events wait to be compared with the event store; further ones \
                     are not compared. `projector verify` compares the bookkeeping of all streams"
                );
            }
            return;
        }
        if self.waiting.is_empty() && self.servers.is_some() {
            self.due = self.due.max(Instant::now() + COLLECT);
        }
        let StoredEvent { stream_id, version, event_id, event_type, position, .. } = event;
        self.waiting.insert(Received {
            stream_id: stream_id.clone(),
            version: *version,
            event_id: *event_id,
            event_type: event_type.clone(),
            position: *position,
        });
    }

    /// Starts to compare, if events are due and no comparison runs.
    pub(super) fn start(&mut self, context: &Arc<Context>, model: &Arc<ReadModel>) {
        if self.waiting.is_empty() || self.due > Instant::now() {
            return;
        }
        let Some(mut servers) = self.servers.take() else { return };
        let page: Vec<Received> = self.waiting.iter().take(PAGE).cloned().collect();
        for received in &page {
            self.waiting.remove(received);
        }
        let (context, model) = (Arc::clone(context), Arc::clone(model));
        self.comparing.spawn(async move {
            let result = servers.compare(&context, &model, &page).await;
            Comparison { servers, page, result }
        });
    }

    /// When the next comparison is due; `None` while one runs.
    pub(super) fn next_due(&self) -> Option<Instant> {
        (self.servers.is_some() && !self.waiting.is_empty()).then_some(self.due)
    }

    /// Waits for the running comparison; `None` without one. Cancel-safe.
    pub(super) async fn join_next(&mut self) -> Option<Result<Comparison, JoinError>> {
        self.comparing.join_next().await
    }

    /// Takes the result of a comparison. After a failure of a server, its events wait again.
    ///
    /// # Errors
    ///
    /// When the projection is paused, or its tables were replaced.
    pub(super) fn finish(&mut self, comparison: Comparison) -> Result<(), Error> {
        let Comparison { servers, page, result } = comparison;
        self.servers = Some(servers);
        match result {
            Ok(()) => {
                self.backoff.succeeded();
                if self.waiting.is_empty() {
                    self.overflowed = false;
                }
                Ok(())
            }
            Err(Error::Server(error)) => {
                tracing::debug!(
                    error = daemon::chain(&error),
                    "repeated events were not compared; they are tried again"
                );
                self.due = Instant::now() + self.backoff.failed();
                self.waiting.extend(page);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Aborts a running comparison.
    pub(super) async fn abort(&mut self) {
        self.comparing.shutdown().await;
    }
}

impl Servers {
    async fn compare(
        &mut self,
        context: &Context,
        model: &ReadModel,
        page: &[Received],
    ) -> Result<(), Error> {
        let mut mysql = match self.mysql.take() {
            Some(session) => session.or_new(&context.mysql).await?,
            None => Session::connect(&context.mysql).await?,
        };
        let mut streams: Vec<&StreamId> = page.iter().map(|one| &one.stream_id).collect();
        streams.sort_unstable();
        streams.dedup();
        // Before the event store: what is applied is stored, so the store then has every event of these heads.
        let heads = mysql.heads(&model.ledger, &streams).await?;
        let last = |one: &Received| heads.get(&one.stream_id).and_then(|head| head.last);
        let places: Vec<_> = page
            .iter()
            .filter_map(|one| Some((one, last(one)?)))
            .flat_map(|(one, last)| [(&one.stream_id, one.version), (&one.stream_id, last.version)])
            .collect();
        let stored = self.history.event_ids(&places).await?;
        let id = |id: Option<uuid::Uuid>| id.and_then(|id| EventId::new(id).ok());
        let stored: HashMap<_, _> = places.iter().zip(stored.into_iter().map(id)).collect();
        let conflicts: Vec<ParkedStream> = page
            .iter()
            .filter_map(|one| {
                let last = last(one)?;
                let at = |version| stored.get(&(&one.stream_id, version)).copied().flatten();
                let stored = Stored { received: at(one.version), last: at(last.version) };
                conflict(one, last, stored)
            })
            .collect();
        if !conflicts.is_empty() {
            context.park_conflicts(&mut mysql, model, conflicts, streams.len()).await?;
        }
        self.mysql = Some(mysql);
        Ok(())
    }
}

/// The parked stream, if an event that counted as a duplicate contradicts the event store.
fn conflict(one: &Received, last: Last, stored: Stored) -> Option<ParkedStream> {
    let Received { stream_id, version, event_id, event_type, position } = one;
    let received = Last { version: *version, event_id: *event_id };
    let (version, applied, reason) = match contradiction(received, last, stored)? {
        Contradiction::OtherEvent { stored } => {
            let reason = format!(
                "another event has version {version}: the event store has {stored}, {event_id} was received"
            );
            (*version, stored, reason)
        }
        Contradiction::OtherHistory => {
            let reason = format!(
                "the event store has {event_id} at version {version}, but not {} at version {}, which was \
                 applied: the stream was deleted and appended again, or an older event store was restored",
                last.event_id, last.version
            );
            (last.version, last.event_id, reason)
        }
    };
    Some(ParkedStream {
        stream_id: stream_id.clone(),
        version,
        event_id: *event_id,
        event_type: event_type.clone(),
        position: Some(*position),
        kind: ParkKind::Conflict,
        reason,
        applied_event_id: Some(applied.uuid()),
        attempts: 1,
        parked_at: Utc::now(),
    })
}
