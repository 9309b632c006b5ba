//! Finding and repairing what went wrong on the way: lost events, stuck queues, parked streams.

mod parked;
mod reconcile;
mod state;
mod stuck_queues;
mod sweeper;
mod unserved;

pub(crate) use parked::{Decision, Error as ParkedError, go_on};
pub(crate) use reconcile::{Line, Reconciliation, reconcile, reconcile_hourly};
pub(crate) use sweeper::sweep;
