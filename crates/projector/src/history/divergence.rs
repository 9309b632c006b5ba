//! Notices that the event store has lost events that a read model has applied: in an asynchronous failover, a
//! restore, or a crash with `synchronous_commit = off`. New events then get the lost versions and positions, so only
//! the ids of events show it.
//!
//! - In every sweep, and before a projector consumes: is the event at the landmark, close behind the checkpoint,
//!   still the same?
//! - In every new run of the PostgreSQL server: is the last applied event of every stream still there that applied
//!   one lately? Whatever loses events of PostgreSQL begins a new run.
//!
//! **Invariant:** nothing is applied that a former run of the server has published and lost. Before the streams are
//! compared, the generation is raised: batches of the time before have ended then, and later deliveries are compared
//! with the event store. (`projector_divergence::…`)

use daemon::output::counted;
use domain_events::{Landmark, Position, StreamId};
use projection::plan::Last;
use read_model::{AppliedStream, Checkpoint, ReadModel, Session};
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;

/// A lost event may be this far before the checkpoint, although the landmark is still there: if its transaction was
/// the last one to commit, and got its position early.
const MARGIN: i64 = 100_000;
/// The lost events in the queues have lower positions than the end of the event store and this many more.
const LOST_MAX: i64 = 1_000_000;
/// The number of streams that are compared at once.
const PAGE: u32 = 1_000;

/// A stream whose last applied event the event store does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Diverged {
    pub(crate) stream_id: String,
    /// The version of the event that was applied.
    pub(crate) version: i64,
    /// The event that was applied.
    pub(crate) applied: Uuid,
    /// Its position, if known.
    pub(crate) position: Option<i64>,
    /// The event that the event store has at that version; `None` if it ends before.
    pub(crate) stored: Option<Uuid>,
    pub(crate) parked: bool,
}

/// The streams whose last applied event the event store does not have; with `behind`, only those whose last applied
/// event is behind that position.
pub(crate) async fn diverged_streams(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    behind: Option<Position>,
) -> Result<Vec<Diverged>, Error> {
    let mut found = Vec::new();
    let mut after: Option<StreamId> = None;
    loop {
        // The bookkeeping is read first: the event store had its events earlier.
        let page = session.applied_streams(&model.ledger, behind, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.stream_id.clone());
        let places: Vec<_> = page.iter().map(|it| (&it.stream_id, it.last.version)).collect();
        let stored = store.event_ids(&places).await?;
        found.extend(page.iter().zip(stored).filter_map(|(it, stored)| diverged(it, stored)));
    }
}

fn diverged(stream: &AppliedStream, stored: Option<Uuid>) -> Option<Diverged> {
    let AppliedStream { stream_id, last: Last { version, event_id }, position, is_parked } = stream;
    (stored != Some(event_id.uuid())).then(|| Diverged {
        stream_id: stream_id.to_string(),
        version: version.get(),
        applied: event_id.uuid(),
        position: position.map(Position::get),
        stored,
        parked: *is_parked,
    })
}

/// Checks that the event store still has what a read model has applied. Returns whether that was compared anew in a
/// new run of the server; then the checkpoint may have moved back.
///
/// # Errors
///
/// [`Error::Diverged`] if the event store has lost events; then the projection is paused.
pub(crate) async fn require_same_history(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
) -> Result<bool, Error> {
    let Some(checkpoint) = session.checkpoint(&model.ledger).await? else { return Ok(false) };
    Check { session, store, model, checkpoint }.run().await
}

struct Check<'c> {
    session: &'c mut Session,
    store: &'c mut event_store::Session,
    model: &'c ReadModel,
    checkpoint: Checkpoint,
}

impl Check<'_> {
    async fn run(&mut self) -> Result<bool, Error> {
        let Checkpoint { position, landmark, server_run, .. } = self.checkpoint;
        if self.session.is_diverged(&self.model.ledger).await? {
            // An earlier release has resumed it.
            return Err(self.pause("nobody has decided about these events yet").await?);
        }
        let found = self.store.surroundings(landmark, position).await?;
        match landmark {
            Some(Landmark { position, event_id }) if !found.has_known => {
                let lost = format!("event {event_id} is no longer at position {}", position.get());
                return Err(self.pause(&lost).await?);
            }
            None if position > Position::START => self.begin_landmark(found.last).await?,
            _ => {}
        }
        if server_run == Some(found.server_run) {
            return Ok(false);
        }
        self.compare(found.server_run).await?;
        Ok(true)
    }

    /// Takes a landmark for a checkpoint that an earlier release has moved.
    async fn begin_landmark(&mut self, last: Option<Landmark>) -> Result<(), Error> {
        let Checkpoint { position, epoch, .. } = self.checkpoint;
        let end = self.store.take_fence().await?.limit();
        if end < position {
            let lost = format!(
                "it ends at position {}, but events up to position {} are applied: an older event store was \
                 restored",
                end.get(),
                position.get()
            );
            return Err(self.pause(&lost).await?);
        }
        Ok(self.session.move_checkpoint_of(&self.model.ledger, epoch, position, last).await?)
    }

    /// Compares the streams that have applied an event lately, in a new run of the server.
    async fn compare(&mut self, server_run: Uuid) -> Result<(), Error> {
        let ledger = &self.model.ledger;
        let Checkpoint { position, epoch, server_run: former, .. } = self.checkpoint;
        if former.is_some() {
            tracing::info!(
                projection = self.model.name(),
                "PostgreSQL was restarted, or another server took over; the applied events are compared with it"
            );
            let until = self.lost_until().await?;
            self.session.compare_deliveries(ledger, until).await?;
        }
        let behind = Position::new((position.get() - MARGIN).max(0)).unwrap_or(Position::START);
        let diverged = diverged_streams(self.session, self.store, self.model, Some(behind)).await?;
        // A parked stream waits for an operator already.
        let going: Vec<_> = diverged.iter().filter(|stream| !stream.parked).collect();
        if let Some(Diverged { stream_id, version, .. }) = going.first() {
            let lost = format!(
                "it does not have the last applied event of {}, for example version {version} of {stream_id}",
                counted(going.len(), "stream", "streams")
            );
            return Err(self.pause(&lost).await?);
        }
        Ok(self.session.note_server_run(ledger, epoch, server_run).await?)
    }

    /// Pauses the projection, and returns the error that says why.
    async fn pause(&mut self, lost: &str) -> Result<Error, Error> {
        // A server that still receives rows has lost nothing.
        self.store.require_complete().await?;
        let name = self.model.name();
        let reason = format!(
            "the event store has lost or replaced events that {name} has applied: {lost}. Run `projector \
             reconcile-history {name}`"
        );
        let (until, epoch) = (self.lost_until().await?, self.checkpoint.epoch);
        self.session.set_diverged(&self.model.ledger, epoch, &reason, until).await?;
        tracing::error!(projection = name, "the projection is paused: {reason}");
        Ok(Error::Diverged { reason })
    }

    /// The position before which every lost event was that may still be in a queue.
    async fn lost_until(&mut self) -> Result<Position, Error> {
        let applied = self.session.last_position(&self.model.ledger, None).await?;
        let end = self.store.take_fence().await?.limit();
        let known = end.max(applied.unwrap_or(Position::START)).max(self.checkpoint.position);
        Ok(Position::new(known.get().saturating_add(LOST_MAX)).unwrap_or(known))
    }
}

/// A position up to which the history of a read model is that of the event store, given all of its diverged streams.
/// It is read before they are folded again: then their rows have positions of the new history.
pub(crate) async fn common_history(
    session: &mut Session,
    model: &ReadModel,
    diverged: &[Diverged],
) -> Result<Position, Error> {
    let mut first = None;
    for stream in diverged {
        // Without a position, the event may be of any time.
        let Some(position) = stream.position.and_then(|it| Position::new(it).ok()) else {
            return Ok(Position::START);
        };
        first = Some(first.map_or(position, |first: Position| first.min(position)));
    }
    // The last applied event before every lost one is in both histories, unless it was applied just before the
    // divergence was noticed.
    let same = session.last_position(&model.ledger, first).await?.map_or(0, Position::get);
    Ok(Position::new((same - MARGIN).max(0)).unwrap_or(Position::START))
}

/// Ends a divergence: moves the checkpoint back to the common history, so that all later positions are compared
/// again, and resumes the projection.
pub(crate) async fn end_divergence(
    session: &mut Session,
    store: &mut event_store::Session,
    model: &ReadModel,
    common: Position,
) -> Result<(), Error> {
    let ledger = &model.ledger;
    let Some(Checkpoint { epoch, .. }) = session.checkpoint(ledger).await? else { return Ok(()) };
    let found = store.surroundings(None, common).await?;
    session.reset_checkpoint(ledger, epoch, found.last, found.server_run).await?;
    Ok(session.end_divergence(ledger).await?)
}
