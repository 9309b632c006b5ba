//! From the first task to the last: signals, shutdown and the exit code.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{Exit, Failure, chain};

/// The tasks of a daemon. Each is owned here and ends before the daemon does.
pub struct Tasks {
    set: JoinSet<(String, Result<(), Failure>)>,
    shutdown: CancellationToken,
}

impl Tasks {
    /// Starts a task that runs until the token is cancelled.
    ///
    /// A task that ends earlier, fails or panics ends the daemon.
    pub fn spawn<F>(&mut self, name: impl Into<String>, task: F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let name = name.into();
        self.set.spawn(async move { (name, task.await) });
    }

    /// Cancelled when it is time to finish what is under way and end.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}

/// How long the tasks may take to finish what is under way; the whole end takes less than 10 s.
const GRACE: Duration = Duration::from_secs(8);

/// Runs a daemon: `start` spawns its tasks, which then run until SIGTERM or SIGINT.
///
/// They have 8 s to finish; then, or on a second signal, they are dropped as they are. Nothing is
/// lost by that: rows stay pending and messages are delivered again.
pub fn run<S>(start: S) -> ExitCode
where
    S: AsyncFnOnce(&mut Tasks) -> Result<(), Failure>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&anyhow!(error).context("starting the runtime").into()),
    };
    let result = runtime.block_on(supervise(start));
    // Threads that still wait for a dead peer must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => Exit::Done.into(),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    tracing::error!(error = chain(failure.error.as_ref()), "ending");
    failure.exit.into()
}

async fn supervise<S>(start: S) -> Result<(), Failure>
where
    S: AsyncFnOnce(&mut Tasks) -> Result<(), Failure>,
{
    // Before anything else: a signal during the start must not kill the process half way.
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
            tracing::warn!("the grace time is over: what is under way will be done again");
        },
        () = signals.next() => tracing::warn!("second signal: ending at once"),
    }
    tasks.set.abort_all();
    result
}

async fn drain(set: &mut JoinSet<(String, Result<(), Failure>)>) {
    while let Some(ended) = set.join_next().await {
        match ended {
            Ok((_, Ok(()))) => {}
            Ok((name, Err(failure))) => {
                let error = chain(failure.error.as_ref());
                tracing::warn!(task = name, error, "failed while shutting down");
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "a task panicked while shutting down");
            }
        }
    }
}

fn premature(ended: Result<(String, Result<(), Failure>), JoinError>) -> Failure {
    match ended {
        Ok((_, Err(failure))) => failure,
        Ok((name, Ok(()))) => anyhow!("task {name} ended by itself").into(),
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
