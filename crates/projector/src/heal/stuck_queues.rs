//! Deleting queues that are stuck.

use broker::Connection;
use daemon::chain;

use super::state::State;
use crate::topology::Topology;

/// Deletes stuck queues, by number. The instances that consume them declare them again, and apply from the
/// event store what was in them.
pub(super) async fn delete_stuck(
    connection: &mut Option<Connection>,
    topology: &Topology,
    state: &mut State,
    stuck: &[usize],
) {
    state.undeleted = None;
    for number in stuck {
        if let Err(reason) = delete(connection, topology, state, *number).await {
            state.undeleted = Some(reason);
            break;
        }
    }
    let names = stuck.iter().map(|number| topology.queues[*number].name.as_str());
    state.report_stuck(&names.collect::<Vec<_>>());
}

/// Deletes a queue, or says why that failed.
async fn delete(
    kept: &mut Option<Connection>,
    topology: &Topology,
    state: &mut State,
    number: usize,
) -> Result<(), String> {
    let queue = &topology.queues[number].name;
    let connection = kept.take().ok_or("RabbitMQ is away")?;
    // Even if the answer is lost, the queue that follows is not taken for this one.
    let before = state.unserved.clone();
    state.unserved.restart(number);
    if let Err(error) = connection.delete_queue(queue).await {
        if error.is_forbidden() {
            state.unserved = before;
        }
        return Err(chain(&error));
    }
    tracing::warn!(
        projection = state.model.name(),
        queue,
        "RabbitMQ delivered the messages of this queue to no instance, though all of them consume it; \
         it was deleted and is declared again, and its events are read from the event store"
    );
    *kept = Some(connection);
    Ok(())
}
