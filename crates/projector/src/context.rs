//! The state that the tasks of a projector share.

use std::time::Instant;

use chrono::Utc;
use daemon::CancellationToken;
use domain_events::StoredEvent;
use projection::plan::Verdict;
use read_model::{
    Applied, ApplyError, ParkKind, ParkedStream, ReadModel, Session, apply, park_conflicts,
};
use uuid::Uuid;

use crate::Settings;
use crate::metrics::{Healing, Metrics, Outcome};

/// Configuration, addresses, metrics and the shutdown token.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) mysql: read_model::Options,
    pub(crate) store: event_store::Options,
    pub(crate) broker: broker::Options,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
    /// Identifies this process; a restart gets another one.
    pub(crate) instance: Uuid,
}

impl Context {
    /// Applies a batch and counts the outcomes. If too many streams fail, pauses the projection and returns
    /// [`ApplyError::Paused`].
    pub(crate) async fn apply(
        &self,
        session: &mut Session,
        model: &ReadModel,
        events: &[&StoredEvent],
    ) -> Result<Applied, ApplyError> {
        let started = Instant::now();
        let applied = match apply(session, model, events, self.settings.breaker).await {
            Err(ApplyError::Storm { reason }) => return Err(pause(session, model, reason).await?),
            other => other?,
        };
        self.count(model, &applied, events, started);
        Ok(applied)
    }

    fn count(
        &self,
        model: &ReadModel,
        applied: &Applied,
        events: &[&StoredEvent],
        started: Instant,
    ) {
        let (name, now) = (model.name(), Utc::now());
        let fresh =
            events.iter().zip(&applied.verdicts).filter(|(_, verdict)| **verdict == Verdict::Apply);
        let ages = fresh.map(|(event, _)| (now - event.recorded_at).as_seconds_f64().max(0.0));
        self.metrics.batch(name, started.elapsed().as_secs_f64(), ages);
        // In the order of the event store, each delivery is only a sign of an event that was read there.
        let is_sign = model.is_ordered();
        let repeated = if is_sign { 0 } else { applied.count(Verdict::Duplicate) };
        for (outcome, count) in [
            (Outcome::Applied, applied.count(Verdict::Apply)),
            (Outcome::Duplicate, repeated),
            (Outcome::Parked, applied.parked.len()),
            (Outcome::OfParkedStream, applied.count(Verdict::Parked)),
            (
                Outcome::Conflict,
                applied.parked.iter().filter(|stream| stream.kind == ParkKind::Conflict).count(),
            ),
        ] {
            self.metrics.count(name, outcome, count);
        }
        report(name, &applied.parked);
    }

    /// Parks streams in conflict that were found among `compared` ones. If they are too many, pauses the
    /// projection and returns [`ApplyError::Paused`].
    pub(crate) async fn park_conflicts(
        &self,
        session: &mut Session,
        model: &ReadModel,
        conflicts: Vec<ParkedStream>,
        compared: usize,
    ) -> Result<(), ApplyError> {
        let breaker = (self.settings.breaker, compared);
        let parked = match park_conflicts(session, model, conflicts, breaker).await {
            Err(ApplyError::Storm { reason }) => return Err(pause(session, model, reason).await?),
            other => other?,
        };
        self.metrics.count(model.name(), Outcome::Conflict, parked.len());
        report(model.name(), &parked);
        Ok(())
    }

    /// Applies events from the event store. Returns the number of events that were missing, plus the number of
    /// streams that parked.
    pub(crate) async fn heal(
        &self,
        session: &mut Session,
        model: &ReadModel,
        events: &[StoredEvent],
        by: Healing,
    ) -> Result<usize, ApplyError> {
        let mut healed = 0;
        for chunk in events.chunks(self.settings.batch_size) {
            let chunk: Vec<&StoredEvent> = chunk.iter().collect();
            let applied = self.apply(session, model, &chunk).await?;
            let count = applied.count(Verdict::Apply);
            self.metrics.healed(model.name(), by, count);
            if count > 0 {
                session.add_healed(&model.ledger, count).await?;
            }
            // To park a stream is progress too.
            healed += count + applied.parked.len();
        }
        Ok(healed)
    }
}

/// Pauses a projection of which too many streams failed at once. Returns the error of the batch.
async fn pause(
    session: &mut Session,
    model: &ReadModel,
    reason: String,
) -> Result<ApplyError, ApplyError> {
    session.set_paused(&model.ledger, Some(&reason)).await?;
    tracing::error!(
        projection = model.name(),
        reason,
        "too many streams failed at once, so the projection is paused; fix the handler, restart the projectors \
         and run `projector resume {}`",
        model.name()
    );
    Ok(ApplyError::Paused { reason })
}

fn report(projection: &str, parked: &[ParkedStream]) {
    for stream in parked {
        let remedy = if stream.kind == ParkKind::Conflict {
            "Run `projector parked retry` if the event store has the event that was applied, and `projector \
             rebuild start` otherwise"
        } else {
            "Fix the handler, restart the projectors and run `projector parked retry`, or run `projector \
             parked skip`"
        };
        tracing::error!(
            projection,
            stream = stream.stream_id.as_str(),
            version = stream.version.get(),
            event = %stream.event_id,
            reason = stream.reason,
            "a stream is parked; other streams go on. {remedy}"
        );
    }
}

/// The component of the health report that says whether a projection follows its queues.
pub(crate) fn component(model: &ReadModel) -> String {
    format!("projection {}", model.name())
}

/// Names this process for people: `host:pid`.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", name.trim(), std::process::id())
}
