//! The projector's metrics, all named `projector_…`.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use read_model::Progress;

/// Label names and values.
type Labels<const N: usize> = [(&'static str, String); N];

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Applied,
    Duplicate,
    /// It stopped its stream because another event with its version was applied.
    Conflict,
    /// It could not be applied, and stopped its stream.
    Parked,
    /// Its stream is parked.
    Behind,
    DeadLettered,
    /// Acknowledged behind missing events that cannot be read for now; the sweeper applies it.
    Deferred,
}

/// What noticed that events were missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Healing {
    /// A later event of the stream.
    Gap,
    /// The sweeper.
    Sweep,
    /// The start of a projection.
    Replay,
}

/// Cheap to clone; clones count together.
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
    lag_events: Family<Labels<1>, Gauge>,
    lag_seconds: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    checkpoint: Family<Labels<1>, Gauge>,
    rebuilding: Family<Labels<1>, Gauge>,
    rebuild_positions_left: Family<Labels<1>, Gauge>,
    rebuild_rate: Family<Labels<1>, Gauge>,
    missing_events: Family<Labels<1>, Gauge>,
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
            lag_events: Family::default(),
            lag_seconds: Family::default(),
            checkpoint: Family::default(),
            rebuilding: Family::default(),
            rebuild_positions_left: Family::default(),
            rebuild_rate: Family::default(),
            missing_events: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("projector");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the program", version);
        registry.register(
            "events",
            "Events received from the queue or read from the event store, by what became of them",
            metrics.events.clone(),
        );
        registry.register(
            "healed_events",
            "Events that had to be read from the event store, by what noticed it",
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
            "Connections given up after a failure",
            metrics.losses.clone(),
        );
        registry.register(
            "parked_streams",
            "Streams that wait until a person retries or skips their event",
            metrics.parked_streams.clone(),
        );
        registry.register(
            "conflicting_streams",
            "Parked streams of which another event with the same version was applied",
            metrics.conflicts.clone(),
        );
        registry.register(
            "paused",
            "1 while nothing is applied until somebody resumes the projection",
            metrics.paused.clone(),
        );
        registry.register(
            "lag_events",
            "Events that are published and not applied, as the sweeper saw them last",
            metrics.lag_events.clone(),
        );
        registry.register_with_unit(
            "lag",
            "Age of the oldest stream head that is published and not applied",
            Unit::Seconds,
            metrics.lag_seconds.clone(),
        );
        registry.register(
            "checkpoint_position",
            "Position up to which every event is known to be applied",
            metrics.checkpoint.clone(),
        );
        metrics.register_rebuild(registry);
        metrics
    }

    fn register_rebuild(&self, registry: &mut Registry) {
        registry.register(
            "rebuilding",
            "1 while a rebuild or a rollback is under way, or was interrupted",
            self.rebuilding.clone(),
        );
        registry.register(
            "rebuild_positions_left",
            "Positions of the event store that a rebuild has not applied yet",
            self.rebuild_positions_left.clone(),
        );
        registry.register(
            "rebuild_events_per_second",
            "Events that a rebuild applies in a second",
            self.rebuild_rate.clone(),
        );
        registry.register(
            "missing_events",
            "Events of the last hour that are neither applied nor parked, nor on their way",
            self.missing_events.clone(),
        );
    }

    pub(crate) fn count(&self, projection: &str, outcome: Outcome, events: usize) {
        let outcome = match outcome {
            Outcome::Applied => "applied",
            Outcome::Duplicate => "duplicate",
            Outcome::Conflict => "conflict",
            Outcome::Parked => "parked",
            Outcome::Behind => "behind_parked",
            Outcome::DeadLettered => "dead_lettered",
            Outcome::Deferred => "deferred",
        };
        self.events
            .get_or_create(&[own(projection), ("outcome", outcome.to_owned())])
            .inc_by(events as u64);
    }

    pub(crate) fn healed(&self, projection: &str, by: Healing, events: usize) {
        let by = match by {
            Healing::Gap => "gap",
            Healing::Sweep => "sweep",
            Healing::Replay => "replay",
        };
        self.healed.get_or_create(&[own(projection), ("by", by.to_owned())]).inc_by(events as u64);
    }

    pub(crate) fn lost(&self, server: &str) {
        self.losses.get_or_create(&[("server", server.to_owned())]).inc();
    }

    pub(crate) fn batch(&self, projection: &str, seconds: f64, ages: impl Iterator<Item = f64>) {
        self.batch_seconds.get_or_create(&[own(projection)]).observe(seconds);
        let histogram = self.event_age_seconds.get_or_create(&[own(projection)]);
        ages.for_each(|age| histogram.observe(age));
    }

    pub(crate) fn parked(&self, projection: &str, streams: i64, conflicts: i64) {
        self.parked_streams.get_or_create(&[own(projection)]).set(streams);
        self.conflicts.get_or_create(&[own(projection)]).set(conflicts);
    }

    pub(crate) fn paused(&self, projection: &str, is_paused: bool) {
        self.paused.get_or_create(&[own(projection)]).set(i64::from(is_paused));
    }

    pub(crate) fn lag(&self, projection: &str, events: i64, seconds: f64) {
        self.lag_events.get_or_create(&[own(projection)]).set(events);
        self.lag_seconds.get_or_create(&[own(projection)]).set(seconds);
    }

    pub(crate) fn rebuild(&self, projection: &str, progress: Option<&Progress>) {
        let labels = [own(projection)];
        self.rebuilding.get_or_create(&labels).set(i64::from(progress.is_some()));
        let Progress { position, until, events_per_second, .. } =
            progress.copied().unwrap_or_default();
        self.rebuild_positions_left.get_or_create(&labels).set(until - position);
        let rate = i64::try_from(events_per_second).unwrap_or(i64::MAX);
        self.rebuild_rate.get_or_create(&labels).set(rate);
    }

    pub(crate) fn missing(&self, projection: &str, events: i64) {
        self.missing_events.get_or_create(&[own(projection)]).set(events);
    }

    pub(crate) fn checkpoint(&self, projection: &str, position: i64) {
        self.checkpoint.get_or_create(&[own(projection)]).set(position);
    }
}

fn own(projection: &str) -> (&'static str, String) {
    ("projection", projection.to_owned())
}
