//! Hints: notifications that something was appended, so that an idle worker claims at once instead
//! of after its pause.
//!
//! This is the state between the listener and the workers. A lost hint costs one pause, never an
//! event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Shared by the listener and the workers.
#[derive(Default)]
pub(crate) struct Hint {
    listening: AtomicBool,
    arrived: Notify,
    /// When a worker last requested a hint; `None` once it has arrived.
    requested: Mutex<Option<Instant>>,
}

impl Hint {
    /// Whether an idle worker should request a hint now, and then claim once more.
    ///
    /// The request is repeated after `again_after`: the writer that took it may have rolled back.
    pub(crate) fn is_wanted(&self, again_after: Duration) -> bool {
        if !self.listening.load(Ordering::Acquire) {
            return false;
        }
        let mut requested = self.requested.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = requested.is_none_or(|at| at.elapsed() >= again_after);
        if wanted {
            *requested = Some(Instant::now());
        }
        wanted
    }

    /// Waits for a hint, indefinitely if nothing listens. Each hint wakes one waiting worker.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// A hint has arrived.
    pub(crate) fn arrive(&self) {
        *self.requested.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.arrived.notify_one();
    }

    /// The listener connected, or lost its connection.
    pub(crate) fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Release);
        // A hint may have been missed in between.
        self.arrive();
    }
}
