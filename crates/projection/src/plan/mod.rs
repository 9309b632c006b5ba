//! The plan of a batch: which events are applied ([`Plan`]), and in which groups ([`schedule()`]). Pure
//! functions without clock or I/O.

mod schedule;
mod sequence;

pub use schedule::{Task, schedule, schedule_in_order};
pub use sequence::{
    Contradiction, Head, Heads, Last, Plan, Slot, Step, Stored, Verdict, contradiction,
};
