//! The life of a daemon: tasks, signals, shutdown and the exit code.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{Exit, Failure, chain};

/// The tasks of a daemon. Each of them ends before the daemon does.
pub struct Tasks {
    set: JoinSet<Ended>,
    shutdown: CancellationToken,
}

impl Tasks {
    /// Starts a task, which must run until the token is cancelled.
    ///
    /// If it ends earlier, fails or panics, the daemon ends.
    pub fn spawn<F>(&mut self, name: impl Into<String>, task: F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let name = name.into();
        self.set.spawn(async move {
            match task.await {
                Ok(()) => Ended::Returned { name },
                Err(failure) => Ended::Failed { name, failure },
            }
        });
    }

    /// The token that is cancelled at shutdown. Tasks then finish their current work and return.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}

/// How a task ended, unless it panicked.
enum Ended {
    Returned { name: String },
    Failed { name: String, failure: Failure },
}

/// How long the tasks may take to finish their current work. With it, a shutdown takes less than 10 s,
/// after which Docker kills a container.
const GRACE: Duration = Duration::from_secs(8);

/// Runs a daemon: `start` spawns its tasks, which run until SIGTERM or SIGINT.
///
/// The tasks then have 8 s to finish. After that, or on a second signal, they are dropped. No event is
/// lost: its row stays pending, or its message is redelivered.
pub fn run<S>(start: S) -> ExitCode
where
    S: AsyncFnOnce(&mut Tasks) -> Result<(), Failure>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&anyhow!(error).context("starting the runtime").into()),
    };
    let result = runtime.block_on(supervise(start));
    // Threads that still wait for a dead peer must not delay the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => Exit::Done.into(),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    tracing::error!(error = chain(failure.error.as_ref()), "stopping");
    failure.exit.into()
}

async fn supervise<S>(start: S) -> Result<(), Failure>
where
    S: AsyncFnOnce(&mut Tasks) -> Result<(), Failure>,
{
    // Before anything else, so that a signal during the start does not kill the process.
    let mut signals = Signals::listen()?;
    let mut tasks = Tasks { set: JoinSet::new(), shutdown: CancellationToken::new() };
    let ended = tokio::select! {
        started = start(&mut tasks) => started.err().map(Err),
        () = signals.next() => Some(Ok(())),
    };
    let result = if let Some(result) = ended {
        result
    } else {
        tokio::select! {
            () = signals.next() => Ok(()),
            Some(ended) = tasks.set.join_next() => Err(premature(ended)),
        }
    };
    tracing::info!("shutting down");
    tasks.shutdown.cancel();
    tokio::select! {
        drained = timeout(GRACE, drain(&mut tasks.set)) => if drained.is_err() {
            tracing::warn!("the grace period is over: unfinished work will be repeated after the next start");
        },
        () = signals.next() => tracing::warn!("second signal: stopping at once"),
    }
    tasks.set.abort_all();
    result
}

async fn drain(set: &mut JoinSet<Ended>) {
    while let Some(ended) = set.join_next().await {
        match ended {
            Ok(Ended::Returned { .. }) => {}
            Ok(Ended::Failed { name, failure }) => {
                let error = chain(failure.error.as_ref());
                tracing::warn!(task = name, error, "a task failed during the shutdown");
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "a task panicked during the shutdown");
            }
        }
    }
}

/// The failure of a task that ended before the shutdown.
fn premature(ended: Result<Ended, JoinError>) -> Failure {
    match ended {
        Ok(Ended::Failed { failure, .. }) => failure,
        Ok(Ended::Returned { name }) => anyhow!("task {name} ended before the shutdown").into(),
        Err(error) => anyhow!(error).context("a task panicked").into(),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
