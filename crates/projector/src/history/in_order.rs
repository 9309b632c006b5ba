//! Applies events to live tables in the order of the event store, for projections that need it.
//!
//! Queues keep the order within a stream only. So for such a projection a delivery is no more than a sign that
//! the event store has new events.
//!
//! **Invariant:** the applied events are always a prefix of the event store, apart from parked streams. Every
//! instance begins at the checkpoint, reads only what a fence has decided, and one batch runs at a time. So it
//! does no harm if several instances do this at once: the later one finds duplicates.

use domain_events::{Position, StoredEvent};
use projection::plan::Verdict;
use read_model::{Checkpoint, ReadModel, Session};

use super::{Decided, FENCE_PATIENCE, History, PAGE, landmark};
use crate::context::Context;
use crate::error::Error;

/// Applies the history from the checkpoint up to `until`, and moves the checkpoint. Returns the number of events
/// that were missing, plus the number of streams that parked.
///
/// `until` must be decided.
///
/// # Errors
///
/// When a server fails, the projection is paused or was replaced, or a replay is due.
pub(crate) async fn apply_in_order(
    context: &Context,
    history: &mut History,
    (session, model): (&mut Session, &ReadModel),
    until: Position,
) -> Result<usize, Error> {
    let mut progress = 0;
    // While a replay is due, it applies these events.
    let Some(Checkpoint { mut position, replay_until: None, epoch, .. }) =
        session.checkpoint(&model.ledger).await?
    else {
        return Err(Error::Replaying);
    };
    while position < until {
        let (events, end) = history.page((position, until), model).await?;
        for chunk in events.chunks(context.settings.batch_size) {
            let chunk: Vec<&StoredEvent> = chunk.iter().collect();
            let applied = context.apply(session, model, &chunk).await?;
            progress += applied.count(Verdict::Apply) + applied.parked.len();
        }
        let landmark = events.last().map(landmark);
        session.move_checkpoint_of(&model.ledger, epoch, end, landmark).await?;
        position = end;
    }
    Ok(progress)
}

/// Applies all events up to the present in the order of the event store, unless those up to `needed` are applied
/// already. Waits for open transactions that append events: one of them may come first.
///
/// # Errors
///
/// As [`apply_in_order`].
pub(crate) async fn follow_in_order(
    context: &Context,
    history: &mut History,
    (session, model): (&mut Session, &ReadModel),
    needed: Position,
) -> Result<(), Error> {
    let checkpoint = session.checkpoint(&model.ledger).await?;
    if checkpoint.is_some_and(|checkpoint| checkpoint.position >= needed) {
        return Ok(());
    }
    let until = loop {
        match history.decided(FENCE_PATIENCE).await? {
            Decided::UpTo(until) => break until,
            Decided::HeldUp(writers) => {
                tracing::warn!(projection = model.name(), "{writers}");
                session.ping().await?;
            }
        }
    };
    apply_in_order(context, history, (session, model), until).await.map(drop)
}

impl History {
    /// Reads the next page of a projection's events.
    async fn page(
        &mut self,
        (after, until): (Position, Position),
        model: &ReadModel,
    ) -> Result<(Vec<StoredEvent>, Position), event_store::Error> {
        let categories = &model.projection.categories;
        let read = match self.session().await {
            Ok(session) => session.read_events(after, until, categories, PAGE).await,
            Err(error) => Err(error),
        };
        if read.is_err() {
            self.forget();
        }
        read
    }
}
