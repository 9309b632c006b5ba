//! Deletes stuck queues: queues that have messages and deliver them to no instance.

use broker::Connection;
use daemon::chain;

use super::state::State;
use crate::topology::Topology;

/// Deletes the queues with the numbers `stuck`. The instances that consume them declare them again, and apply
/// the events of their lost messages from the event store.
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

/// Deletes a queue, or returns the reason why that failed.
async fn delete(
    kept: &mut Option<Connection>,
    topology: &Topology,
    state: &mut State,
    number: usize,
) -> Result<(), String> {
    let queue = &topology.queues[number].name;
    let connection = kept.take().ok_or("RabbitMQ cannot be reached")?;
    // Restarted before the request, whose answer may be lost: the new queue must not count as stuck at once.
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
        "RabbitMQ delivered the messages of this queue to no instance, although every instance consumes it; \
         it was deleted and is declared again, and its events are applied from the event store"
    );
    *kept = Some(connection);
    Ok(())
}
