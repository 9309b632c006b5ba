//! Looks at what the consumers of a projection cannot see: which session of MySQL holds a lock for which a batch
//! waits, and whether a relay publishes. Records what this projector says of itself, for `projector status`.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use daemon::cause::{Cause, State};
use daemon::output::counted;
use daemon::{Failure, Health, Probe, chain};
use event_store::{Backlog, Relay, RelayReport, Rows, Unpublished};
use read_model::{Blocker, Error, Failing, ReadModel, Run, Session, all_tables};
use tokio::time::{sleep, timeout};

use crate::consume::Batches;
use crate::context::{Context, host};

/// How often this projector reports. Status counts a projector as gone after five times as long.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How often to look at the relays.
const RELAY_INTERVAL: Duration = Duration::from_secs(5);
/// Events that wait for longer to be published are worth a word.
pub(crate) const PUBLISH_PATIENCE: Duration = Duration::from_secs(10);
/// The kind of cause when no relay is connected.
const NO_RELAY: &str = "no_relay";
/// How long the record of this projector may take to be removed at shutdown.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// A projection of this projector, and what its batches report.
pub(crate) type Surveyed = (Arc<ReadModel>, Arc<Batches>);

/// Surveys until shutdown.
pub(crate) async fn survey(
    context: Arc<Context>,
    surveyed: Vec<Surveyed>,
    health: Health,
) -> Result<(), Failure> {
    let relay = health.probe("relay", None);
    relay.ok();
    tokio::join!(report(&context, &surveyed, &health), watch_relays(&context, &relay));
    Ok(())
}

async fn report(context: &Context, surveyed: &[Surveyed], health: &Health) {
    let stop = &context.shutdown;
    let mut session = None;
    while stop.run_until_cancelled(sleep(REPORT_INTERVAL)).await.is_some() {
        match stop.run_until_cancelled(report_once(context, &mut session, surveyed, health)).await {
            None => break,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                // Other tasks report the failure of MySQL in `/readyz`.
                tracing::debug!(error = chain(&error), "the state was not recorded");
                session = None;
            }
        }
    }
    let leave = async {
        let mut session = Session::connect(&context.mysql).await?;
        session.withdraw_report(context.instance).await?;
        session.close().await;
        Ok::<_, Error>(())
    };
    if let Ok(Err(error)) = timeout(LEAVE_LIMIT, leave).await {
        tracing::debug!(error = chain(&error), "the record of this projector was not removed");
    }
}

async fn report_once(
    context: &Context,
    kept: &mut Option<Session>,
    surveyed: &[Surveyed],
    health: &Health,
) -> Result<(), Error> {
    let mut session = match kept.take() {
        Some(session) => session,
        None => Session::connect(&context.mysql).await?,
    };
    for (model, batches) in surveyed.iter().filter(|(_, batches)| batches.may_wait()) {
        match session.blockers(&locked_tables(model)).await {
            Ok(blockers) if blockers.is_empty() => {}
            Ok(blockers) => batches.blocked_by(list(&blockers)),
            Err(error @ Error::LocksHidden) => {
                batches.blocked_by(error.to_string());
                session = Session::connect(&context.mysql).await?;
            }
            Err(error) => return Err(error),
        }
    }
    let run = |(model, batches): &Surveyed| Run {
        projection: model.name().to_owned(),
        queues: batches.queues(),
    };
    let runs: Vec<Run> = surveyed.iter().map(run).collect();
    let failing = health.failing().into_iter().map(|it| {
        let daemon::Failing { component, reason, since } = it;
        Failing { component, reason, since }
    });
    let failing: Vec<Failing> = failing.collect();
    session.report((context.instance, &host()), &runs, &failing).await?;
    *kept = Some(session);
    Ok(())
}

/// The tables of a projection that a batch locks.
pub(crate) fn locked_tables(model: &ReadModel) -> Vec<String> {
    let mut tables = all_tables(&model.projection, &model.ledger);
    tables.push("projector_projections".to_owned());
    tables
}

/// The sessions in one sentence.
pub(crate) fn list(blockers: &[Blocker]) -> String {
    blockers.iter().map(Blocker::line).collect::<Vec<_>>().join("; ")
}

async fn watch_relays(context: &Context, probe: &Probe) {
    let stop = &context.shutdown;
    let mut session = None;
    let mut seen = Utc::now();
    let patience = TimeDelta::from_std(PUBLISH_PATIENCE).unwrap_or_default();
    while stop.run_until_cancelled(sleep(RELAY_INTERVAL)).await.is_some() {
        let look = async {
            let mut connected = match session.take() {
                Some(session) => session,
                None => event_store::Session::connect(&context.store).await?,
            };
            let publishing = Publishing::of(&mut connected, Rows::FromFloor).await?;
            session = Some(connected);
            Ok::<_, event_store::Error>(publishing)
        };
        match stop.run_until_cancelled(look).await {
            None => break,
            // Other tasks report the failure of PostgreSQL in `/readyz`.
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "the relays were not looked at");
            }
            Some(Ok(publishing)) => {
                context.metrics.unpublished(&publishing.unpublished);
                if !publishing.relays.is_empty() {
                    seen = Utc::now();
                }
                // A pooler can hide the session of a relay for a moment.
                let gone = Utc::now() - seen >= patience;
                match publishing.cause() {
                    Some(cause) if cause.state == State::Attention => {
                        probe.ok_with(Some(cause.line()));
                    }
                    Some(cause) if cause.cause != NO_RELAY || gone => probe.failing(&cause.line()),
                    _ => probe.ok(),
                }
            }
        }
    }
    if let Some(session) = session {
        session.close().await;
    }
}

/// Whether the events of the event store are published.
pub(crate) struct Publishing {
    pub(crate) unpublished: Unpublished,
    pub(crate) relays: Vec<Relay>,
}

impl Publishing {
    pub(crate) async fn of(
        store: &mut event_store::Session,
        rows: Rows,
    ) -> Result<Self, event_store::Error> {
        Ok(Self {
            unpublished: store.count_unpublished(rows).await?,
            relays: store.relays().await?,
        })
    }

    /// Why the oldest pending event has waited for longer than [`PUBLISH_PATIENCE`]. Without a relay, any pending
    /// event is worth attention.
    pub(crate) fn cause(&self) -> Option<Cause> {
        let Unpublished { pending, oldest_age_seconds: age, .. } = self.unpublished;
        let is_late = age >= PUBLISH_PATIENCE.as_secs_f64();
        if pending == 0 || !(is_late || self.relays.is_empty()) {
            return None;
        }
        let more = if pending >= Backlog::COUNTED_AT_MOST { " or more" } else { "" };
        let wait = if pending == 1 { "waits" } else { "wait" };
        let waiting =
            format!("{}{more} {wait} to be published", counted(pending, "event", "events"));
        let since = Some(since(age));
        if self.relays.is_empty() {
            let state = if is_late { State::Broken } else { State::Attention };
            let text = format!("no relay is connected to the event store, and {waiting}");
            let remedy = "start one with `outbox-relay run`".to_owned();
            return Some(Cause { state, cause: NO_RELAY, object: None, since, text, remedy });
        }
        let report = self.relays.iter().find_map(|relay| Some((relay, relay.report()?)));
        let (state, cause, object, text) = match report {
            Some((relay, RelayReport { slow: None, .. })) => {
                let text = format!("{relay} cannot publish to RabbitMQ, and {waiting}");
                (State::Broken, "broker_away", Some(relay.to_string()), text)
            }
            Some((relay, RelayReport { slow: Some(rate), .. })) => {
                let text = format!("{relay} is slow: the broker confirms {rate}, and {waiting}");
                (State::Attention, "broker_slow", Some(relay.to_string()), text)
            }
            None => {
                let text = format!("{waiting}, although a relay is connected");
                (State::Attention, "relay_behind", None, text)
            }
        };
        let remedy = "`outbox-relay status` says more".to_owned();
        Some(Cause { state, cause, object, since, text, remedy })
    }
}

/// The time that was so many seconds ago.
pub(crate) fn since(seconds: f64) -> DateTime<Utc> {
    let elapsed = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Utc::now() - TimeDelta::from_std(elapsed).unwrap_or_default()
}
