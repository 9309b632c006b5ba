//! RabbitMQ: connections, a confirmed publisher, a consumer and the topology.
//!
//! The only crate that names lapin. Nothing here reconnects: lapin's own recovery hides an outage
//! until it is over, so a broken connection is an error, and whoever supervises connects anew.
//!
//! **Invariants:**
//! - A channel belongs to one task. Two tasks that publish on one channel are told each other's
//!   confirms (lapin 4.12.3 numbers a message and sends it under two different locks).
//! - A message counts as published when the broker confirmed it *and* did not return it, and that
//!   is decided for a batch when all its confirms are in.
//! - Every call has a deadline.
//! - lapin can read each frame it gets, whatever somebody has published.

mod connection;
mod consumer;
mod dial;
mod error;
mod frames;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod pattern;
mod properties;
mod publisher;
mod stream;
mod topology;

pub use connection::{Connection, Options};
pub use consumer::{Consumer, Delivery, Envelope, Receipt};
pub use error::Error;
pub use pattern::{InvalidPattern, TopicPattern};
pub use publisher::{Outcome, Publisher};
pub use topology::{Binding, Difference, Queue};
