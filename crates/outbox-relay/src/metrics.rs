//! The relay's metrics, all named `outbox_relay_…`.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Label name and value.
type Label = [(&'static str, &'static str); 1];

/// Cheap to clone; clones count together.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) messages: Family<Label, Counter>,
    pub(crate) publish_seconds: Histogram,
    pub(crate) event_age_seconds: Histogram,
    pub(crate) batch_events: Histogram,
    pub(crate) losses: Family<Label, Counter>,
    pub(crate) pending_events: Gauge,
    pub(crate) held_streams: Gauge,
    pub(crate) oldest_pending_age_seconds: Gauge<f64, AtomicU64>,
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
            pending_events: Gauge::default(),
            held_streams: Gauge::default(),
            oldest_pending_age_seconds: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("outbox_relay");
        registry.register(
            "build",
            "Version of the program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "messages_published",
            "Messages by what became of them",
            metrics.messages.clone(),
        );
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
            "Connections given up after a failure",
            metrics.losses.clone(),
        );
        registry.register(
            "pending_events",
            "Events to publish, sampled, counted up to 200000",
            metrics.pending_events.clone(),
        );
        registry.register(
            "held_streams",
            "Streams that wait because an event could not be published, sampled",
            metrics.held_streams.clone(),
        );
        registry.register_with_unit(
            "oldest_pending_age",
            "Age of the oldest event to publish, sampled",
            Unit::Seconds,
            metrics.oldest_pending_age_seconds.clone(),
        );
        metrics
    }

    /// Counts a message by what became of it.
    pub(crate) fn count(&self, outcome: &'static str) {
        self.messages.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Counts a connection that was given up.
    pub(crate) fn lost(&self, server: &'static str) {
        self.losses.get_or_create(&[("server", server)]).inc();
    }
}
