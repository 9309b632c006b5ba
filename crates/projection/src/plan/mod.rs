//! What to do with the events of a batch, and in which groups. Pure.

mod schedule;
mod sequence;

pub use schedule::{Task, schedule};
pub use sequence::{Head, Heads, Last, Plan, Slot, Step, Verdict};
