//! The projector's metrics, all named `projector_…`.

use std::sync::atomic::AtomicU64;

use event_store::Unpublished;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use read_model::Progress;

/// Label names and values.
type Labels<const N: usize> = [(&'static str, String); N];

/// The outcome of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Applied,
    Duplicate,
    /// Another event with its version was applied; its stream is parked.
    Conflict,
    /// It could not be applied; its stream is parked.
    Parked,
    /// Its stream was already parked.
    OfParkedStream,
    DeadLettered,
    /// Acknowledged unapplied, because the missing events before it cannot be read for now. The sweeper applies
    /// it.
    Deferred,
}

/// The reason why events were read from the event store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Healing {
    /// A later event of the stream arrived.
    Gap,
    /// The sweeper found that they were lost.
    Sweep,
    /// They belong to the history that a new projection applies at its start.
    Replay,
}

/// The metrics. Clones share their values.
#[derive(Clone)]
pub(crate) struct Metrics {
    events: Family<Labels<2>, Counter>,
    healed: Family<Labels<2>, Counter>,
    batch_seconds: Family<Labels<1>, Histogram>,
    event_age_seconds: Family<Labels<1>, Histogram>,
    losses: Family<Labels<1>, Counter>,
    parked_streams: Family<Labels<1>, Gauge>,
    conflicts: Family<Labels<1>, Gauge>,
    paused: Family<Labels<1>, Gauge>,
    diverged: Family<Labels<1>, Gauge>,
    lag_events: Family<Labels<1>, Gauge>,
    lag_seconds: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    checkpoint: Family<Labels<1>, Gauge>,
    rebuilding: Family<Labels<1>, Gauge>,
    rebuild_positions_left: Family<Labels<1>, Gauge>,
    rebuild_rate: Family<Labels<1>, Gauge>,
    missing_events: Family<Labels<1>, Gauge>,
    dead_letters: Family<Labels<1>, Gauge>,
    unpublished_events: Gauge,
    oldest_unpublished_age_seconds: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let batch_seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let event_age_seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let metrics = Self {
            events: Family::default(),
            healed: Family::default(),
            batch_seconds: Family::new_with_constructor(batch_seconds),
            event_age_seconds: Family::new_with_constructor(event_age_seconds),
            losses: Family::default(),
            parked_streams: Family::default(),
            conflicts: Family::default(),
            paused: Family::default(),
            diverged: Family::default(),
            lag_events: Family::default(),
            lag_seconds: Family::default(),
            checkpoint: Family::default(),
            rebuilding: Family::default(),
            rebuild_positions_left: Family::default(),
            rebuild_rate: Family::default(),
            missing_events: Family::default(),
            dead_letters: Family::default(),
            unpublished_events: Gauge::default(),
            oldest_unpublished_age_seconds: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("projector");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the program", version);
        registry.register(
            "events",
            "Events received from the queue or read from the event store, by outcome",
            metrics.events.clone(),
        );
        registry.register(
            "healed_events",
            "Events read from the event store, by cause",
            metrics.healed.clone(),
        );
        registry.register_with_unit(
            "batch_duration",
            "Time to apply and commit a batch",
            Unit::Seconds,
            metrics.batch_seconds.clone(),
        );
        registry.register_with_unit(
            "event_age",
            "Age of an event when it was applied",
            Unit::Seconds,
            metrics.event_age_seconds.clone(),
        );
        registry.register(
            "connection_losses",
            "Connections closed after a failure",
            metrics.losses.clone(),
        );
        metrics.register_state(registry);
        metrics.register_rebuild(registry);
        metrics
    }

    fn register_state(&self, registry: &mut Registry) {
        registry.register(
            "parked_streams",
            "Streams that wait until you retry or skip their event",
            self.parked_streams.clone(),
        );
        registry.register(
            "conflicting_streams",
            "Parked streams for which another event with the same version was applied",
            self.conflicts.clone(),
        );
        registry.register(
            "dead_letters",
            "Messages in the dead-letter queue",
            self.dead_letters.clone(),
        );
        registry.register("paused", "1 while the projection is paused", self.paused.clone());
        registry.register(
            "diverged",
            "1 while the projection is paused because the event store has lost applied events",
            self.diverged.clone(),
        );
        registry.register(
            "lag_events",
            "Events that are stored and not applied, without parked streams",
            self.lag_events.clone(),
        );
        registry.register_with_unit(
            "lag",
            "Age of the oldest event that is stored and not applied",
            Unit::Seconds,
            self.lag_seconds.clone(),
        );
        registry.register(
            "unpublished_events",
            "Events that wait for a relay, counted up to 100,000",
            self.unpublished_events.clone(),
        );
        registry.register_with_unit(
            "oldest_unpublished_age",
            "Age of the oldest event that waits for a relay",
            Unit::Seconds,
            self.oldest_unpublished_age_seconds.clone(),
        );
        registry.register(
            "checkpoint_position",
            "Position up to which every event is known to be applied",
            self.checkpoint.clone(),
        );
    }

    fn register_rebuild(&self, registry: &mut Registry) {
        registry.register(
            "rebuilding",
            "1 while a rebuild or a rollback runs or is interrupted",
            self.rebuilding.clone(),
        );
        registry.register(
            "rebuild_positions_left",
            "Positions of the event store that a rebuild has still to read",
            self.rebuild_positions_left.clone(),
        );
        registry.register(
            "rebuild_events_per_second",
            "Events per second that a rebuild applies",
            self.rebuild_rate.clone(),
        );
        registry.register(
            "missing_events",
            "Published events of the last hour that are neither applied nor parked after five minutes",
            self.missing_events.clone(),
        );
    }

    pub(crate) fn count(&self, projection: &str, outcome: Outcome, events: usize) {
        let outcome = match outcome {
            Outcome::Applied => "applied",
            Outcome::Duplicate => "duplicate",
            Outcome::Conflict => "conflict",
            Outcome::Parked => "parked",
            Outcome::OfParkedStream => "of_parked_stream",
            Outcome::DeadLettered => "dead_lettered",
            Outcome::Deferred => "deferred",
        };
        self.events
            .get_or_create(&[label(projection), ("outcome", outcome.to_owned())])
            .inc_by(events as u64);
    }

    pub(crate) fn healed(&self, projection: &str, by: Healing, events: usize) {
        let by = match by {
            Healing::Gap => "gap",
            Healing::Sweep => "sweep",
            Healing::Replay => "replay",
        };
        self.healed
            .get_or_create(&[label(projection), ("by", by.to_owned())])
            .inc_by(events as u64);
    }

    pub(crate) fn lost(&self, server: &str) {
        self.losses.get_or_create(&[("server", server.to_owned())]).inc();
    }

    pub(crate) fn batch(&self, projection: &str, seconds: f64, ages: impl Iterator<Item = f64>) {
        self.batch_seconds.get_or_create(&[label(projection)]).observe(seconds);
        let histogram = self.event_age_seconds.get_or_create(&[label(projection)]);
        ages.for_each(|age| histogram.observe(age));
    }

    pub(crate) fn parked(&self, projection: &str, streams: i64, conflicts: i64) {
        self.parked_streams.get_or_create(&[label(projection)]).set(streams);
        self.conflicts.get_or_create(&[label(projection)]).set(conflicts);
    }

    pub(crate) fn paused(&self, projection: &str, is_paused: bool) {
        self.paused.get_or_create(&[label(projection)]).set(i64::from(is_paused));
    }

    pub(crate) fn diverged(&self, projection: &str, is_diverged: bool) {
        self.diverged.get_or_create(&[label(projection)]).set(i64::from(is_diverged));
    }

    pub(crate) fn lag(&self, projection: &str, events: i64, seconds: f64) {
        self.lag_events.get_or_create(&[label(projection)]).set(events);
        self.lag_seconds.get_or_create(&[label(projection)]).set(seconds);
    }

    pub(crate) fn rebuild(&self, projection: &str, progress: Option<&Progress>) {
        let labels = [label(projection)];
        self.rebuilding.get_or_create(&labels).set(i64::from(progress.is_some()));
        let Progress { position, until, events_per_second, .. } =
            progress.copied().unwrap_or_default();
        self.rebuild_positions_left.get_or_create(&labels).set(until - position);
        let rate = i64::try_from(events_per_second).unwrap_or(i64::MAX);
        self.rebuild_rate.get_or_create(&labels).set(rate);
    }

    pub(crate) fn dead_letters(&self, projection: &str, messages: u32) {
        self.dead_letters.get_or_create(&[label(projection)]).set(i64::from(messages));
    }

    pub(crate) fn unpublished(&self, unpublished: &Unpublished) {
        self.unpublished_events.set(unpublished.pending);
        self.oldest_unpublished_age_seconds.set(unpublished.oldest_age_seconds);
    }

    pub(crate) fn missing(&self, projection: &str, events: i64) {
        self.missing_events.get_or_create(&[label(projection)]).set(events);
    }

    pub(crate) fn checkpoint(&self, projection: &str, position: i64) {
        self.checkpoint.get_or_create(&[label(projection)]).set(position);
    }
}

fn label(projection: &str) -> (&'static str, String) {
    ("projection", projection.to_owned())
}
