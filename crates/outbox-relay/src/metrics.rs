//! The relay's metrics. All names begin with `outbox_relay_`.

use std::sync::atomic::AtomicU64;

use event_store::{Backlog, Reason, WaitingStreams};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::meter::Meter;

/// Label name and value.
type Label = [(&'static str, &'static str); 1];

/// Cheap to clone; clones share their values.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) messages: Family<Label, Counter>,
    pub(crate) publish_seconds: Histogram,
    pub(crate) event_age_seconds: Histogram,
    pub(crate) batch_events: Histogram,
    pub(crate) losses: Family<Label, Counter>,
    pub(crate) claim_seconds: Histogram,
    pub(crate) deleted: Counter,
    pub(crate) parked_streams: Gauge,
    pub(crate) events: Family<Label, Gauge>,
    pub(crate) waiting_streams: Family<Label, Gauge>,
    pub(crate) oldest_age_seconds: Gauge<f64, AtomicU64>,
    pub(crate) oldest_held_age_seconds: Gauge<f64, AtomicU64>,
    /// What the broker confirms now, for the probes.
    pub(crate) confirms: Meter,
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            messages: Family::default(),
            publish_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            event_age_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
            batch_events: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            losses: Family::default(),
            claim_seconds: Histogram::new(exponential_buckets(0.000_5, 1.5, 24)),
            deleted: Counter::default(),
            parked_streams: Gauge::default(),
            events: Family::default(),
            waiting_streams: Family::default(),
            oldest_age_seconds: Gauge::default(),
            oldest_held_age_seconds: Gauge::default(),
            confirms: Meter::default(),
        };
        let registry = registry.sub_registry_with_prefix("outbox_relay");
        registry.register(
            "build",
            "Version of the program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register("messages_published", "Messages by outcome", metrics.messages.clone());
        registry.register_with_unit(
            "publish_duration",
            "Time from the first publish of a batch to its last confirm",
            Unit::Seconds,
            metrics.publish_seconds.clone(),
        );
        registry.register_with_unit(
            "event_age",
            "Age of an event when the broker confirmed it",
            Unit::Seconds,
            metrics.event_age_seconds.clone(),
        );
        registry.register(
            "batch_events",
            "Events published together",
            metrics.batch_events.clone(),
        );
        registry.register(
            "connection_losses",
            "Connections dropped after a failure",
            metrics.losses.clone(),
        );
        registry.register_with_unit(
            "claim_duration",
            "Time to lock lanes with events to publish and to read their first events",
            Unit::Seconds,
            metrics.claim_seconds.clone(),
        );
        registry.register(
            "deleted_events",
            "Published events deleted from the outbox after their retention",
            metrics.deleted.clone(),
        );
        registry.register(
            "outbox_events",
            "Unpublished events by state (pending, held, delayed); sampled, each counted up to 100000",
            metrics.events.clone(),
        );
        registry.register(
            "waiting_streams",
            "Streams that wait for a retry, a person or a delayed event, by reason; sampled",
            metrics.waiting_streams.clone(),
        );
        registry.register(
            "parked_streams",
            "Streams that wait until a person retries or skips an event; sampled",
            metrics.parked_streams.clone(),
        );
        registry.register_with_unit(
            "oldest_pending_age",
            "Age of the oldest pending event, without those of streams that wait; sampled",
            Unit::Seconds,
            metrics.oldest_age_seconds.clone(),
        );
        registry.register_with_unit(
            "oldest_held_age",
            "Age of the oldest event that could not be published; sampled",
            Unit::Seconds,
            metrics.oldest_held_age_seconds.clone(),
        );
        metrics
    }

    /// Counts a message by its outcome.
    pub(crate) fn count(&self, outcome: &'static str) {
        self.messages.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Counts a connection that was dropped after a failure.
    pub(crate) fn lost(&self, server: &'static str) {
        self.losses.get_or_create(&[("server", server)]).inc();
    }

    /// Sets the gauges of the outbox.
    pub(crate) fn backlog(&self, backlog: &Backlog, waiting: &[WaitingStreams]) {
        let states =
            [("pending", backlog.pending), ("held", backlog.held), ("delayed", backlog.delayed)];
        for (state, count) in states {
            self.events.get_or_create(&[("state", state)]).set(count);
        }
        for reason in Reason::ALL {
            let of_reason = waiting.iter().filter(|streams| streams.reason == reason.as_str());
            let count = of_reason.map(|streams| streams.streams).sum();
            self.waiting_streams.get_or_create(&[("reason", reason.as_str())]).set(count);
        }
        let parked = waiting.iter().filter(|streams| streams.parked);
        self.parked_streams.set(parked.map(|streams| streams.streams).sum());
        self.oldest_age_seconds.set(backlog.oldest_age_seconds);
        self.oldest_held_age_seconds.set(backlog.oldest_held_age_seconds);
    }
}
