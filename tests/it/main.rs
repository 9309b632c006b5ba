//! Tests of the complete system on real PostgreSQL, RabbitMQ and MySQL.
//!
//! Each test has its own databases and its own virtual host, so the tests run in parallel.
#![expect(clippy::unwrap_used, clippy::too_many_lines, reason = "a failed unwrap fails the test")]
#![allow(clippy::print_stdout, reason = "tests print measurements and why they are skipped")]

mod append;
mod append_event;
mod broker;
mod broker_alarm;
mod configuration;
mod corpus;
mod fence;
mod incidents;
mod natural;
mod operations;
mod projector;
mod projector_attached;
mod projector_conflicts;
mod projector_dead_letters;
mod projector_definitions;
mod projector_divergence;
mod projector_faults;
mod projector_history;
mod projector_loss;
mod projector_migrate;
mod projector_order;
mod projector_output;
mod projector_parking;
mod projector_queues;
mod projector_rebuild;
mod projector_rebuild_interrupted;
mod projector_retry;
mod projector_scale;
mod projector_status;
mod projector_topology;
mod projector_unreadable;
mod projector_values;
mod projector_verify;
mod relay;
mod relay_boundary;
mod relay_faults;
mod relay_fleet;
mod relay_operations;
mod relay_reconcile;
mod relay_slow;
mod relay_status;
mod relay_waits;
mod several_hosts;
mod shop;
mod upgrade;
mod wait_endpoint;
mod workload;
