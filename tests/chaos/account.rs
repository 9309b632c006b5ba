//! What the writers know about their events.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// The outcome of the appended events, as the writers know it.
#[derive(Default)]
pub(crate) struct Account {
    /// PostgreSQL confirmed the COMMIT.
    committed: Mutex<HashSet<Uuid>>,
    /// Rolled back before a COMMIT was sent.
    rolled_back: Mutex<HashSet<Uuid>>,
    /// The number of events whose COMMIT was sent and not answered.
    pub(crate) unknown: AtomicU64,
    appended: AtomicU64,
}

impl Account {
    pub(crate) fn commit(&self, ids: &[Uuid]) {
        lock(&self.committed).extend(ids);
        self.appended.fetch_add(ids.len() as u64, Ordering::Relaxed);
    }

    pub(crate) fn roll_back(&self, ids: &[Uuid]) {
        lock(&self.rolled_back).extend(ids);
    }

    pub(crate) fn lose(&self, ids: &[Uuid]) {
        self.unknown.fetch_add(ids.len() as u64, Ordering::Relaxed);
    }

    /// The number of events that are certainly committed.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    pub(crate) fn committed(&self) -> HashSet<Uuid> {
        lock(&self.committed).clone()
    }

    pub(crate) fn rolled_back(&self) -> HashSet<Uuid> {
        lock(&self.rolled_back).clone()
    }
}

/// Locks. A poisoned lock is used as it is: nothing under it is ever half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
