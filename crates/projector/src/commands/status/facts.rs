//! What `projector status` finds out. Each server has a deadline of its own, and what cannot be had is left out.

use std::time::{Duration, Instant};

use broker::Connection;
use daemon::{Failure, chain};
use event_store::Rows;
use read_model::{Error as ReadModelError, Instance, JobState, ReadModel, Report, Session};
use tokio::time::timeout;
use uuid::Uuid;

use super::found::{Condition, Facts, Found, FoundInstance, FoundQueue, Published};
use crate::Settings;
use crate::consume::assign;
use crate::error::Error;
use crate::history::{Lag, lags};
use crate::survey::{Publishing, locked_tables};
use crate::topology::Topology;

/// How long each part may take.
const PART_LIMIT: Duration = Duration::from_secs(8);

/// Something that was asked of a server, or the reason why there is no answer.
type Part<T> = Result<T, String>;

/// Asks all servers.
pub(super) async fn gather(settings: &Settings, models: &[ReadModel]) -> Result<Facts, Failure> {
    let (mysql, store, broker) = (settings.mysql()?, settings.store()?, settings.broker()?);
    let (books, published, queues) = tokio::join!(
        bookkeeping(&mysql, models),
        part("the event store", published(&store)),
        part("the queues", queues(settings, &broker, models)),
    );
    let (mut projections, projectors) = books;
    let mut unknown = Vec::new();
    let migrated: Vec<(usize, &ReadModel)> = models
        .iter()
        .enumerate()
        .filter(|(number, _)| projections[*number].checkpoint.is_some())
        .collect();
    if published.is_ok() && !migrated.is_empty() {
        let read: Vec<&ReadModel> = migrated.iter().map(|(_, model)| *model).collect();
        match part("the lag", measure(&mysql, &store, &read)).await {
            Ok(lags) => {
                for ((number, _), lag) in migrated.iter().zip(lags) {
                    projections[*number].lag = Some(lag);
                }
            }
            Err(reason) => unknown.push(reason),
        }
    }
    match queues {
        Ok(found) => {
            for (projection, (queues, dead_letters)) in projections.iter_mut().zip(found) {
                (projection.queues, projection.dead_letters) = (queues, Some(dead_letters));
            }
        }
        Err(reason) => unknown.push(reason),
    }
    for projection in &mut projections {
        count_unsettled(projection, &projectors);
    }
    let publishing = published.map_err(|reason| unknown.push(reason)).ok();
    Ok(Facts { publishing, projections, projectors, unknown })
}

/// Awaits one part for at most [`PART_LIMIT`].
async fn part<T>(what: &str, part: impl Future<Output = Result<T, Error>>) -> Part<T> {
    match timeout(PART_LIMIT, part).await {
        Ok(found) => found.map_err(|error| format!("{what} cannot be read: {}", chain(&error))),
        Err(_elapsed) => Err(format!("{what} cannot be read within {PART_LIMIT:?}")),
    }
}

/// Reads the bookkeeping of all projections, and what projectors report. After an error, goes on with the next
/// projection while there is time.
async fn bookkeeping(
    mysql: &read_model::Options,
    models: &[ReadModel],
) -> (Vec<Found>, Vec<Report>) {
    let started = Instant::now();
    let mut kept = None;
    let reports = part("what projectors report", reports(mysql, &mut kept)).await;
    let mut last = reports.as_ref().err().cloned();
    let reports = reports.unwrap_or_default();
    let mut all = Vec::new();
    for model in models {
        let mut found = Found::new(model);
        if started.elapsed() < PART_LIMIT {
            let read = part("its bookkeeping", async {
                let mut session = match kept.take() {
                    Some(session) => session,
                    None => Session::connect(mysql).await?,
                };
                fill(&mut found, &mut session, model, &reports).await?;
                kept = locks(&mut found, session, model).await;
                Ok(())
            });
            if let Err(reason) = read.await {
                found = Found { reason: Some(reason.clone()), ..Found::new(model) };
                last = Some(reason);
            }
        } else {
            found.reason.clone_from(&last);
        }
        all.push(found);
    }
    if let Some(session) = kept {
        session.close().await;
    }
    (all, reports)
}

async fn reports(
    mysql: &read_model::Options,
    kept: &mut Option<Session>,
) -> Result<Vec<Report>, Error> {
    let mut session = Session::connect(mysql).await?;
    match session.reports().await {
        Ok(reports) => {
            *kept = Some(session);
            Ok(reports)
        }
        // Before `projector migrate`.
        Err(ReadModelError::NoTable { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Reads the bookkeeping of a projection.
async fn fill(
    found: &mut Found,
    session: &mut Session,
    model: &ReadModel,
    reports: &[Report],
) -> Result<(), Error> {
    let ledger = &model.ledger;
    match session.require_tables(&model.projection, ledger).await {
        Ok(()) => {}
        Err(
            error @ (ReadModelError::NotMigrated { .. }
            | ReadModelError::Outdated { .. }
            | ReadModelError::OutdatedBookkeeping { .. }),
        ) => {
            found.state = Condition::NotMigrated;
            found.reason = Some(error.to_string());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    found.files = match model.prepare(session).await {
        Ok(()) => Error::require_in_service(model).err().map(|error| error.to_string()),
        Err(error @ ReadModelError::SwapNotRecorded { .. }) => Some(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    (found.parked, found.conflicts) = session.count_parked(ledger).await?;
    found.healed = session.healed(ledger).await?;
    found.instances = with_assignment(session.instances(ledger).await?);
    found.rebuild = session.job(ledger).await?;
    let checkpoint = session.checkpoint(ledger).await?;
    found.checkpoint = checkpoint.map(|checkpoint| checkpoint.position.get());
    let runs =
        |report: &Report| report.projections.iter().any(|run| run.projection == model.name());
    let replays = checkpoint.is_some_and(|checkpoint| checkpoint.replay_until.is_some());
    found.state = if let Some((reason, since)) = session.paused(ledger).await? {
        (found.reason, found.paused_since) = (Some(reason), Some(since));
        let is_diverged = session.is_diverged(ledger).await?;
        if is_diverged { Condition::Diverged } else { Condition::Paused }
    } else if found.instances.is_empty() && !reports.iter().any(runs) {
        Condition::NoInstance
    } else if replays {
        Condition::ApplyingHistory
    } else if found.instances.is_empty() {
        Condition::Waiting
    } else {
        Condition::Following
    };
    Ok(())
}

/// Reads who holds locks that a projection needs. Returns the session, unless it cannot be used any more.
async fn locks(found: &mut Found, mut session: Session, model: &ReadModel) -> Option<Session> {
    if found.state == Condition::NotMigrated {
        return Some(session);
    }
    let tables = locked_tables(model);
    let swapping = found
        .rebuild
        .as_ref()
        .is_some_and(|job| matches!(job.state, JobState::CuttingOver | JobState::RollingBack));
    let blockers = if swapping {
        session.table_holders(&tables).await
    } else {
        session.blockers(&tables).await
    };
    match blockers {
        Ok(blockers) => {
            found.blockers = blockers;
            Some(session)
        }
        Err(error) => {
            // Without the right to see locks, everything else is still worth showing.
            found.locks_hidden = matches!(error, ReadModelError::LocksHidden);
            None
        }
    }
}

fn with_assignment(instances: Vec<Instance>) -> Vec<FoundInstance> {
    let ids: Vec<Uuid> = instances.iter().map(|instance| instance.id).collect();
    let found = |instance: Instance| {
        let holders = assign(&ids, instance.of);
        let assigned = (1..)
            .zip(holders)
            .filter(|(_, holder)| *holder == instance.id)
            .map(|(number, _)| number);
        FoundInstance { assigned: assigned.collect(), instance }
    };
    instances.into_iter().map(found).collect()
}

fn count_unsettled(found: &mut Found, reports: &[Report]) {
    let runs = reports.iter().flat_map(|report| &report.projections);
    for run in runs.filter(|run| run.projection == found.projection) {
        for (queue, used) in found.queues.iter_mut().zip(&run.queues) {
            queue.unsettled += used.unsettled;
        }
    }
}

async fn published(store: &event_store::Options) -> Result<Published, Error> {
    let mut session = event_store::Session::connect(store).await?;
    session.require_complete().await?;
    let publishing = Publishing::of(&mut session, Rows::All).await?;
    let open_writers = session.open_writers().await?;
    session.close().await;
    let cause = publishing.cause();
    let Publishing { unpublished, relays } = publishing;
    Ok(Published {
        pending: unpublished.pending,
        held: unpublished.held,
        oldest_age_seconds: unpublished.oldest_age_seconds,
        relays,
        open_writers,
        cause,
    })
}

async fn queues(
    settings: &Settings,
    broker: &broker::Options,
    models: &[ReadModel],
) -> Result<Vec<(Vec<FoundQueue>, u32)>, Error> {
    let connection = Connection::connect(broker).await?;
    let mut found = Vec::new();
    for ReadModel { projection, .. } in models {
        let (prefix, exchange) = (&settings.queue_prefix, &settings.exchange);
        let topology = Topology::of(projection, prefix, exchange, projection.partitions);
        let mut queues = Vec::new();
        for queue in &topology.queues {
            let ready = connection.ready_messages(&queue.name).await?;
            queues.push(FoundQueue { name: queue.name.clone(), ready, unsettled: 0 });
        }
        let dead = connection.ready_messages(topology.dead_letters()).await?;
        found.push((queues, dead.unwrap_or_default()));
    }
    connection.close().await;
    Ok(found)
}

async fn measure(
    mysql: &read_model::Options,
    store: &event_store::Options,
    models: &[&ReadModel],
) -> Result<Vec<Lag>, Error> {
    let mut session = Session::connect(mysql).await?;
    let mut store = event_store::Session::connect(store).await?;
    let found = lags(&mut session, &mut store, models).await?;
    store.close().await;
    session.close().await;
    Ok(found)
}
