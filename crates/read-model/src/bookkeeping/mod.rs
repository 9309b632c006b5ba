//! The bookkeeping of projections: where each stream stands, which streams are parked, the state of
//! rebuilds, and the instances that share the queues.

mod checkpoint;
mod definitions;
mod divergence;
mod gate;
mod instances;
mod ledger;
mod migrations;
mod ownership;
mod parked;
mod rebuilds;
mod reports;
mod skips;

pub use checkpoint::Checkpoint;
pub use definitions::{Service, StoredDefinition};
pub use divergence::AppliedStream;
pub use gate::{Gate, LockMode};
pub use instances::Instance;
pub use ledger::Ledger;
#[cfg(test)]
pub(crate) use migrations::MIGRATIONS;
pub use ownership::Lock;
pub use parked::{ParkKind, ParkedReason, ParkedStream};
pub use rebuilds::{Job, JobState, Options, Progress};
pub use reports::{Failing, QueueUse, Report, Run};
pub use skips::{SkippedEvent, Skips};
