//! What writers know of their events.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// What became of the events that were appended.
#[derive(Default)]
pub(crate) struct Account {
    /// PostgreSQL has said that they are committed.
    committed: Mutex<HashSet<Uuid>>,
    /// They were rolled back before a COMMIT was sent.
    rolled_back: Mutex<HashSet<Uuid>>,
    /// A COMMIT was sent for so many events, and not answered.
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

    /// How many events are committed for certain.
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

/// A lock whose owner has panicked is as good as before: nothing is half done under it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
