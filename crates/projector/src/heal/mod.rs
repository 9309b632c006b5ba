//! Finds and repairs lost events and parked streams, and reports stuck queues.

mod parked;
mod reconcile;
mod silent;
mod state;
mod sweeper;
mod unserved;

pub(crate) use parked::{Decision, Error as ParkedError, retry_or_skip};
pub(crate) use reconcile::{Line, Reconciliation, reconcile, reconcile_hourly};
pub(crate) use sweeper::sweep;
