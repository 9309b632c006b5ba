//! Following the queues of a projection.

mod assignment;
mod consumer;
mod deliveries;
mod lane;
mod partitions;
mod supervisor;

pub(crate) use supervisor::supervise;
