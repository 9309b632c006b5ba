//! Follows the queues of a projection: takes deliveries, applies them, acknowledges them.

mod assignment;
mod batches;
mod consumer;
mod deliveries;
mod duplicates;
mod gaps;
mod lane;
mod partitions;
mod supervisor;

pub(crate) use assignment::assign;
pub(crate) use batches::Batches;
pub(crate) use supervisor::supervise;
