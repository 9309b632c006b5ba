//! The task that receives hints from PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use daemon::backoff::Backoff;
use daemon::{Failure, chain};
use event_store::{Listener, Wake};
use tokio::time::sleep;

use crate::context::Context;

/// A connection without hints is checked this often.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens until shutdown. While it is disconnected, workers find events at the end of their pause.
pub(crate) async fn listen(
    context: Arc<Context>,
    options: event_store::Options,
) -> Result<(), Failure> {
    let mut reconnect = Backoff::reconnect(context.settings.reconnect_max);
    while !context.shutdown.is_cancelled() {
        let forward = forward(&context, &options, &mut reconnect);
        let Some(error) = context.shutdown.run_until_cancelled(forward).await else { break };
        context.hint.set_listening(false);
        context.metrics.lost("postgresql_listener");
        tracing::debug!(error = chain(&error), "no hints until the listener reconnects");
        context.shutdown.run_until_cancelled(sleep(reconnect.failed())).await;
    }
    Ok(())
}

/// Forwards hints until the connection fails.
async fn forward(
    context: &Context,
    options: &event_store::Options,
    reconnect: &mut Backoff,
) -> event_store::Error {
    let mut listener = match Listener::connect(options).await {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    reconnect.succeeded();
    context.hint.set_listening(true);
    loop {
        match listener.next(PATIENCE).await {
            Ok(Wake::Hint) => context.hint.arrive(),
            Ok(Wake::Quiet) => {}
            Err(error) => return error,
        }
    }
}
