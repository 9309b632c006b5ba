//! Finds and repairs lost events, stuck queues and parked streams.

mod parked;
mod reconcile;
mod state;
mod stuck_queues;
mod sweeper;
mod unserved;

pub(crate) use parked::{Decision, Error as ParkedError, retry_or_skip};
pub(crate) use reconcile::{Line, Reconciliation, reconcile, reconcile_hourly};
pub(crate) use sweeper::sweep;
