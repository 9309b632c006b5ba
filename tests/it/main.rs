//! Tests of the whole, on real PostgreSQL, RabbitMQ and MySQL.
//!
//! Each test has databases and a virtual host of its own, so that all run side by side.
#![expect(clippy::unwrap_used, clippy::too_many_lines, reason = "tests say what must hold")]
#![allow(clippy::print_stdout, reason = "what a test has measured, or why it was skipped")]

mod append;
mod append_event;
mod broker;
mod broker_alarm;
mod corpus;
mod fence;
mod incidents;
mod operations;
mod projector;
mod projector_faults;
mod projector_history;
mod projector_migrate;
mod projector_parking;
mod projector_queues;
mod projector_rebuild;
mod projector_scale;
mod projector_unreadable;
mod projector_verify;
mod relay;
mod relay_faults;
mod relay_fleet;
mod relay_operations;
mod relay_waits;
mod shop;
mod workload;
