//! What all tasks of a projector share.

use std::time::Instant;

use chrono::Utc;
use daemon::CancellationToken;

use crate::Settings;
use crate::apply::{Applied, ApplyError, EventFault, ReadModel, apply};
use crate::metrics::{Healing, Metrics, Outcome};
use crate::mysql::{self, Session};
use crate::sequence::Verdict;
use crate::stream_event::StreamEvent;

/// Configuration, addresses, metrics and the shutdown token.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) mysql: mysql::Options,
    pub(crate) store: event_store::Options,
    pub(crate) broker: broker::Options,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// Applies a batch and counts what became of it.
    pub(crate) async fn apply<'e>(
        &self,
        session: &mut Session,
        model: &ReadModel,
        events: &[&'e StreamEvent],
    ) -> Result<Applied<'e>, ApplyError> {
        let started = Instant::now();
        let applied = apply(session, model, events).await?;
        let now = Utc::now();
        let ages = applied.plan.apply.iter().map(|event| now - event.event.recorded_at);
        let ages = ages.map(|age| age.as_seconds_f64().max(0.0));
        self.metrics.batch(model.name(), started.elapsed().as_secs_f64(), ages);
        let verdicts = &applied.plan.verdicts;
        let duplicates = verdicts.iter().filter(|verdict| **verdict == Verdict::Duplicate).count();
        self.metrics.count(model.name(), Outcome::Applied, applied.plan.apply.len());
        self.metrics.count(model.name(), Outcome::Duplicate, duplicates);
        Ok(applied)
    }

    /// Applies events from the event store, and counts those that had been missing.
    ///
    /// Gives how many were applied. When some cannot be, everything else is; the first of them is the
    /// error.
    pub(crate) async fn heal(
        &self,
        session: &mut Session,
        model: &ReadModel,
        events: &[StreamEvent],
        by: Healing,
    ) -> Result<usize, ApplyError> {
        let mut healed = 0;
        let mut faults: Vec<Box<EventFault>> = Vec::new();
        for chunk in events.chunks(self.settings.batch_size) {
            loop {
                let waits = |event: &StreamEvent| faults.iter().any(|fault| fault.stops(event));
                let batch: Vec<_> = chunk.iter().filter(|event| !waits(event)).collect();
                match self.apply(session, model, &batch).await {
                    Ok(applied) => {
                        healed += applied.plan.apply.len();
                        self.metrics.healed(model.name(), by, applied.plan.apply.len());
                        break;
                    }
                    Err(ApplyError::Event(fault)) => faults.push(fault),
                    Err(error @ ApplyError::Server(_)) => return Err(error),
                }
            }
        }
        match faults.into_iter().next() {
            None => Ok(healed),
            Some(fault) => Err(ApplyError::Event(fault)),
        }
    }
}
