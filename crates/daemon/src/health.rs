//! Whether the daemon makes progress; if not, why and since when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::lasting::{Lasting, Log};

/// The state of the daemon's components: the servers it depends on, and its own tasks.
///
/// A failure is logged at its beginning, once for each other reason, at growing intervals, and at its end,
/// however many tasks notice it and however often.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Component>>>);

#[derive(Default)]
struct Component {
    /// The reasons why it is failing or not ready, by probe; empty when it is healthy.
    failing: BTreeMap<usize, String>,
    /// When its state last changed.
    since: DateTime<Utc>,
    /// What was logged about its failure.
    logged: Lasting,
    probes: Vec<ProbeState>,
}

struct ProbeState {
    /// What else there is to say while it works, and since when.
    note: Option<(String, DateTime<Utc>)>,
    /// When it last reported anything.
    last_report: Instant,
    silence_limit: Option<Duration>,
}

/// A component that does not work now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// Its name.
    pub component: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// The reason of a probe that has not reported yet.
const STARTING: &str = "starting";

/// Reports the state of one component. Several probes can report on the same component, which is
/// healthy if all of them say so.
pub struct Probe {
    health: Health,
    component: String,
    number: usize,
}

impl Health {
    /// Creates a probe. Until its first report, the component counts as starting.
    ///
    /// With a `silence_limit`, the component counts as failing when the probe has not reported for that
    /// long: a task that hangs cannot report its own failure.
    pub fn probe(&self, component: &str, silence_limit: Option<Duration>) -> Probe {
        let mut components = self.lock();
        let entry = components
            .entry(component.to_owned())
            .or_insert_with(|| Component { since: Utc::now(), ..Component::default() });
        let number = entry.probes.len();
        entry.probes.push(ProbeState { note: None, last_report: Instant::now(), silence_limit });
        entry.failing.insert(number, STARTING.to_owned());
        Probe { health: self.clone(), component: component.to_owned(), number }
    }

    /// Whether all components are healthy, and the state of each as JSON.
    pub fn report(&self) -> (bool, Value) {
        let components = self.lock();
        let mut ready = true;
        let mut states = serde_json::Map::new();
        for (name, component) in &*components {
            let reason = component.reason();
            ready &= reason.is_none();
            let since = component.since.to_rfc3339_opts(SecondsFormat::Secs, true);
            let state = match reason {
                None => match component.note() {
                    None => json!({ "ok": true, "since": since }),
                    Some((note, noted)) => {
                        let noted = noted.to_rfc3339_opts(SecondsFormat::Secs, true);
                        json!({ "ok": true, "since": since, "note": note, "note_since": noted })
                    }
                },
                Some(reason) => json!({ "ok": false, "since": since, "reason": reason }),
            };
            states.insert(name.clone(), state);
        }
        (ready, json!({ "ready": ready, "components": states }))
    }

    /// Why a component fails, and since when; `None` while it works or starts.
    pub fn failure(&self, component: &str) -> Option<(String, DateTime<Utc>)> {
        let components = self.lock();
        let component =
            components.get(component).filter(|component| component.logged.failures() > 0)?;
        let reason = component.failing.values().next()?;
        Some((reason.clone(), component.since))
    }

    /// Why a component is not ready; `None` while it works.
    pub fn reason(&self, component: &str) -> Option<String> {
        self.lock().get(component)?.reason()
    }

    /// All components that do not work now, or are not ready, without those that start.
    pub fn failing(&self) -> Vec<Failing> {
        let components = self.lock();
        let failing = components.iter().filter_map(|(name, component)| {
            let reason = component.reason().filter(|reason| reason != STARTING)?;
            Some(Failing { component: name.clone(), reason, since: component.since })
        });
        failing.collect()
    }

    /// What a component says while it works, and since when.
    pub fn note(&self, component: &str) -> Option<(String, DateTime<Utc>)> {
        self.lock().get(component)?.note().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Component>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// The note that has lasted longest.
    fn note(&self) -> Option<&(String, DateTime<Utc>)> {
        let notes = self.probes.iter().filter_map(|probe| probe.note.as_ref());
        notes.min_by_key(|(_, since)| *since)
    }

    fn fails(&mut self, probe: usize, reason: &str) {
        if self.failing.is_empty() {
            self.since = Utc::now();
        }
        self.failing.insert(probe, reason.to_owned());
    }

    /// Why it is not ready.
    fn reason(&self) -> Option<String> {
        self.failing.values().next().cloned().or_else(|| self.silence())
    }

    fn silence(&self) -> Option<String> {
        self.probes.iter().find_map(|probe| {
            let silence = probe.last_report.elapsed();
            (silence > probe.silence_limit?)
                .then(|| format!("no progress for {} s", silence.as_secs()))
        })
    }
}

impl Probe {
    /// Reports that the component works.
    pub fn ok(&self) {
        self.ok_with(None);
    }

    /// Reports that the component works, and what else there is to say, for example that it is slow.
    pub fn ok_with(&self, note: Option<String>) {
        self.update(|component| {
            if let Some(probe) = component.probes.get_mut(self.number) {
                let since = probe.note.take().map_or_else(Utc::now, |(_, since)| since);
                probe.note = note.map(|note| (note, since));
            }
            if component.failing.remove(&self.number).is_some() && component.failing.is_empty() {
                let after_seconds = (Utc::now() - component.since).num_seconds();
                component.since = Utc::now();
                let failures = std::mem::take(&mut component.logged).failures();
                if failures > 0 {
                    let component = self.component.as_str();
                    tracing::info!(component, after_seconds, failures, "works again");
                }
            }
        });
    }

    /// Reports that the component is not ready now. This is no failure, and is not logged.
    pub fn not_ready(&self, reason: &str) {
        self.update(|component| component.fails(self.number, reason));
    }

    /// Reports that the component does not work now.
    pub fn failing(&self, reason: &str) {
        self.update(|component| {
            component.fails(self.number, reason);
            let for_seconds = (Utc::now() - component.since).num_seconds();
            match component.logged.failed(reason) {
                Some(Log::Begins) => {
                    tracing::warn!(
                        component = self.component,
                        reason,
                        "does not work, trying again"
                    );
                }
                Some(Log::Lasts) => tracing::warn!(
                    component = self.component,
                    reason,
                    for_seconds,
                    failures = component.logged.failures(),
                    "still does not work, trying again"
                ),
                None => {}
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut Component)) {
        let mut components = self.health.lock();
        if let Some(component) = components.get_mut(&self.component) {
            if let Some(probe) = component.probes.get_mut(self.number) {
                probe.last_report = Instant::now();
            }
            change(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(health: &Health) -> Option<String> {
        let (ready, report) = health.report();
        let reason = report["components"]["broker"]["reason"].as_str().map(str::to_owned);
        assert_eq!(ready, reason.is_none());
        reason
    }

    #[test]
    fn ready_when_every_probe_is_well() {
        let health = Health::default();
        let (one, two) = (health.probe("broker", None), health.probe("broker", None));
        assert_eq!(reason(&health).as_deref(), Some("starting"));
        one.ok();
        assert_eq!(reason(&health).as_deref(), Some("starting"));
        two.ok();
        assert_eq!(reason(&health), None);
        two.failing("gone");
        one.ok();
        assert_eq!(reason(&health).as_deref(), Some("gone"));
        two.ok();
        assert_eq!(reason(&health), None);
    }

    #[test]
    fn silence_is_not_health() {
        let health = Health::default();
        let probe = health.probe("broker", Some(Duration::ZERO));
        probe.ok();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(reason(&health).as_deref(), Some("no progress for 0 s"));
    }
}
