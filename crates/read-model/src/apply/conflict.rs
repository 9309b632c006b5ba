//! Parks streams whose conflict was found after their event had counted as a duplicate.

use std::collections::BTreeMap;

use domain_events::StreamId;
use projection::plan::{Head, Step};

use super::{ApplyError, Breaker, ReadModel};
use crate::{ParkedStream, Session};

/// Parks streams in conflict, unless they are parked already. Returns those that were parked now. The breaker
/// needs the number of streams that were compared.
///
/// # Errors
///
/// See [`ApplyError`].
pub async fn park_conflicts(
    session: &mut Session,
    model: &ReadModel,
    conflicts: Vec<ParkedStream>,
    (breaker, compared): (Breaker, usize),
) -> Result<Vec<ParkedStream>, ApplyError> {
    // Sorted, as in every batch, and one conflict for each stream.
    let mut conflicts: BTreeMap<StreamId, ParkedStream> =
        conflicts.into_iter().map(|it| (it.stream_id.clone(), it)).collect();
    let mut batch = model.begin(session).await?;
    let heads = batch.lock(&conflicts.keys().collect::<Vec<_>>()).await?;
    conflicts.retain(|stream_id, _| heads.get(stream_id).is_some_and(|head| !head.is_parked));
    let step = |stream_id| {
        let from: Head = heads[stream_id];
        Step { stream_id, from, to: Head { is_parked: true, ..from }, position: None }
    };
    let steps: Vec<Step<'_>> = conflicts.keys().map(step).collect();
    let parked: Vec<ParkedStream> = conflicts.values().cloned().collect();
    if parked.is_empty() {
        batch.rollback().await?;
        return Ok(parked);
    }
    let recently = batch.recently_parked(breaker.window).await?;
    if let Some(reason) = breaker.trips(&parked, recently, compared) {
        batch.rollback().await?;
        return Err(ApplyError::Storm { reason });
    }
    batch.advance(&steps).await?;
    batch.park(&parked).await?;
    batch.commit().await?;
    Ok(parked)
}
