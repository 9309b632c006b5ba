//! RabbitMQ: connections, a publisher with confirms, a consumer and the topology.
//!
//! # What it owns
//!
//! Everything that uses the AMQP client library, lapin. No other crate names lapin. Nothing here
//! reconnects: lapin's own recovery would hide an outage until it is over. A broken connection is an
//! error instead, and the daemon that supervises it connects again.
//!
//! # Place in the flow
//!
//! The relay publishes batches of messages ([`Publisher::publish`]) to a topic exchange. The projector
//! declares its queues ([`Connection::declare_queue`]) and consumes them ([`Consumer::next`]).
//! `domain-events` converts between messages and events. The crate knows no database.
//!
//! # Invariants
//!
//! - A channel belongs to one task. If two tasks published on one channel, each could receive the
//!   other's confirms, because lapin 4.12.3 numbers a message and sends it under two different locks.
//! - A message counts as published when the broker confirmed it *and* did not return it. This is
//!   decided for a whole batch, after its last confirm.
//! - Every call has a deadline.
//! - lapin can read every frame that it receives, whatever was published.
//!
//! # Where to begin
//!
//! | module | task |
//! |---|---|
//! | `connection` | connect, deadlines |
//! | `publisher`, `consumer` | **start here** |
//! | `dead_letters` | reading and emptying dead-letter queues |
//! | `topology`, `pattern` | exchanges, queues, bindings; matching routing keys |
//! | `difference` | comparing exchanges and queues with their definitions |
//! | `properties` | messages to AMQP properties and back |
//! | `dial`, `stream`, `frames` | workarounds for lapin 4.12.3 |

mod connection;
mod consumer;
mod dead_letters;
mod dial;
mod difference;
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
pub use dead_letters::{DeadLetter, DeadLetters};
pub use difference::{Difference, DifferenceKind};
pub use error::Error;
pub use pattern::{InvalidPattern, TopicPattern};
pub use publisher::{Interrupted, Outcome, Publisher};
pub use topology::{Binding, Declared, Kind, Queue};
