//! Making queues anew that are dead.

use std::time::{Duration, Instant};

use daemon::chain;

use super::Sweeper;
use super::state::State;
use crate::mysql::Session;
use crate::trouble::Trouble;

/// Whether a dead queue may go is not asked more often: it can mean reading the whole outbox.
const ASK_PAUSE: Duration = Duration::from_mins(1);

impl Sweeper<'_> {
    /// Deletes the queues that are dead, by number: those who consume them make them anew, and apply from
    /// the event store what was in them. They are kept, and told of, when something may be in them that the
    /// event store does not have.
    pub(super) async fn remake(
        &mut self,
        session: &mut Session,
        state: &mut State,
        dead: &[usize],
    ) -> Result<(), Trouble> {
        state.kept.take_if(|(asked, _)| dead.is_empty() || asked.elapsed() >= ASK_PAUSE);
        if !dead.is_empty() && state.kept.is_none() {
            let reason = match self.reason_to_keep(session, state).await? {
                None => self.delete(state, dead).await,
                reason => reason,
            };
            state.kept = reason.map(|reason| (Instant::now(), reason));
        }
        let topology = self.topology(&state.model);
        let names = dead.iter().map(|number| topology.queues[*number].name.as_str());
        state.report_kept(&names.collect::<Vec<_>>());
        Ok(())
    }

    /// Why a dead queue must stay.
    async fn reason_to_keep(
        &mut self,
        session: &mut Session,
        state: &State,
    ) -> Result<Option<String>, Trouble> {
        let model = &state.model;
        let others = "events of this projection are not all in the event store".to_owned();
        if session.has_inbox(&model.ledger).await? {
            return Ok(Some(others));
        }
        let asked = match self.history.session().await {
            Ok(store) => store.has_other_events(&model.projection.categories).await,
            Err(error) => Err(error),
        };
        Ok(match asked {
            Ok(found) => found.then_some(others),
            Err(error) => {
                self.history.forget();
                Some(format!("it is not known what may be in there: {}", chain(&error)))
            }
        })
    }

    /// Deletes queues; tells why one could not be.
    async fn delete(&mut self, state: &mut State, dead: &[usize]) -> Option<String> {
        let topology = self.topology(&state.model);
        for number in dead {
            let connection = self.connection.take()?;
            let queue = &topology.queues[*number].name;
            // Even if the answer is lost, a queue that is new is not taken for this one.
            let before = state.unserved.clone();
            state.unserved.begin_anew(*number);
            if let Err(error) = connection.delete_queue(queue).await {
                if error.is_forbidden() {
                    state.unserved = before;
                }
                return Some(chain(&error));
            }
            tracing::warn!(
                projection = state.model.name(),
                queue,
                "RabbitMQ delivered what was in this queue to no instance, though all of them consume \
                 it; it was deleted and is made anew, and its events are read from the event store"
            );
            self.connection = Some(connection);
        }
        None
    }
}
