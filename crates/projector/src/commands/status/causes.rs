//! Why read models do not keep up: what `projector status` concludes.

use chrono::{DateTime, Utc};
use daemon::cause::{Cause, State};
use daemon::output::counted;
use event_store::OpenTransaction;
use read_model::{Blocker, Failing, JobState, Report};
use serde::Serialize;

use super::found::{Condition, Facts, Found};
use crate::survey::since;

/// A lag that is older is worth a look, also without a known cause.
const LONG_LAG_SECONDS: f64 = 60.0;

/// A cause, and the projection that it concerns.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Reason {
    /// The projection; absent if the cause concerns all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) projection: Option<String>,
    #[serde(flatten)]
    pub(super) cause: Cause,
}

/// All causes, the most urgent first.
pub(super) fn causes(facts: &Facts) -> Vec<Reason> {
    let mut shared: Vec<Cause> = facts.unknown.iter().map(|text| unknown(text)).collect();
    if let Some(published) = &facts.publishing {
        shared.extend(published.cause.clone());
        shared.extend(published.open_writers.iter().filter(|it| it.is_long()).map(of_writer));
    }
    shared.extend(facts.projectors.iter().flat_map(of_projector));
    let mut reasons = Vec::new();
    for found in &facts.projections {
        let mut own = of_projection(found, &facts.projectors);
        if own.is_empty() && shared.is_empty() {
            own.extend(of_lag(found));
        }
        let projection = || Some(found.projection.clone());
        reasons.extend(own.into_iter().map(|cause| Reason { projection: projection(), cause }));
    }
    reasons.extend(shared.into_iter().map(|cause| Reason { projection: None, cause }));
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.cause.state));
    reasons
}

fn unknown(text: &str) -> Cause {
    Cause {
        state: State::Attention,
        cause: "unknown",
        object: None,
        since: None,
        text: text.to_owned(),
        remedy: "check the server, and the network to it from this host".to_owned(),
    }
}

fn of_writer(writer: &OpenTransaction) -> Cause {
    Cause {
        state: State::Attention,
        cause: "transaction_open",
        object: Some(writer.to_string()),
        since: writer.since,
        text: writer.as_writer(),
        remedy: writer.remedy(),
    }
}

/// What does not work in a projector, apart from single projections.
fn of_projector(report: &Report) -> Vec<Cause> {
    // Whether events are published is known first hand.
    let shared = report.failing.iter().filter(|failing| {
        failing.component != "relay" && !failing.component.starts_with("projection ")
    });
    shared.map(|failing| reported(report, failing, State::Attention)).collect()
}

fn reported(report: &Report, failing: &Failing, state: State) -> Cause {
    Cause {
        state,
        cause: "projector_failing",
        object: Some(report.host.clone()),
        since: Some(failing.since),
        text: format!("the projector {} says: {}", report.host, failing.reason),
        remedy: "its log has the history".to_owned(),
    }
}

fn of_projection(found: &Found, reports: &[Report]) -> Vec<Cause> {
    let mut causes: Vec<Cause> = of_condition(found).into_iter().collect();
    if !matches!(found.state, Condition::Paused | Condition::Diverged) {
        let reported = of_reports(found, reports);
        let named = |blocker: &&Blocker| {
            !reported.iter().any(|cause| cause.text.contains(&blocker.to_string()))
        };
        causes.extend(found.blockers.iter().filter(named).map(|it| of_blocker(found, it)));
        causes.extend(reported);
    }
    causes.extend(of_content(found));
    causes
}

/// What the state of a projection says by itself.
fn of_condition(found: &Found) -> Option<Cause> {
    let name = &found.projection;
    let reason = found.reason.clone().unwrap_or_default();
    let (cause, text, remedy) = match found.state {
        Condition::Unknown => {
            let remedy = "check MySQL, and the network to it from this host".to_owned();
            ("unknown", format!("its state is unknown: {reason}"), remedy)
        }
        Condition::NotMigrated => {
            let remedy = "run `projector migrate`";
            let text = reason.trim_end_matches(remedy).trim_end_matches(": ").to_owned();
            ("not_migrated", text, remedy.to_owned())
        }
        Condition::Paused => {
            let remedy = format!("run `projector resume {name}` to continue");
            ("paused", format!("paused ({reason})"), remedy)
        }
        Condition::Diverged => {
            let remedy = format!("run `projector reconcile-history {name}`");
            let text = reason
                .trim_end_matches(&remedy["run".len()..])
                .trim_end_matches(". Run")
                .to_owned();
            ("diverged", text, remedy)
        }
        Condition::NoInstance => (
            "no_projector",
            "no projector runs it".to_owned(),
            "start one with `projector run`".to_owned(),
        ),
        Condition::Waiting | Condition::ApplyingHistory | Condition::Following => return None,
    };
    let (object, since) = (Some(name.clone()), found.paused_since);
    Some(Cause { state: State::Broken, cause, object, since, text, remedy })
}

/// What projectors say of a projection. It is broken unless one of them follows it without failing.
fn of_reports(found: &Found, reports: &[Report]) -> Vec<Cause> {
    let component = format!("projection {}", found.projection);
    let runs =
        |report: &&Report| report.projections.iter().any(|run| run.projection == found.projection);
    let fails = |report: &Report| report.failing.iter().any(|it| it.component == component);
    // A projector of the previous version follows, and does not report.
    let is_followed = found.instances.iter().any(|one| {
        let report = reports.iter().find(|report| report.instance == one.instance.id);
        report.is_none_or(|report| !fails(report))
    });
    let mut causes = Vec::new();
    for report in reports.iter().filter(runs) {
        for failing in &report.failing {
            let part = failing.component.strip_prefix(&component);
            let Some(part) = part.filter(|part| part.is_empty() || part.starts_with(' ')) else {
                continue;
            };
            let applies = is_followed || found.state == Condition::ApplyingHistory;
            let broken = part.is_empty() && !applies;
            let state = if broken { State::Broken } else { State::Attention };
            causes.push(reported(report, failing, state));
        }
    }
    causes
}

fn of_blocker(found: &Found, blocker: &Blocker) -> Cause {
    let waits = match &found.rebuild {
        Some(job) if job.state.is_unfinished() => "the swap of a rebuild waits",
        _ => "batches wait",
    };
    Cause {
        state: State::Attention,
        cause: "lock",
        object: Some(blocker.to_string()),
        since: Some(blocker.since),
        text: format!("{waits}: {}", blocker.action()),
        remedy: blocker.remedy(),
    }
}

/// What waits for a decision of a person.
fn of_content(found: &Found) -> Vec<Cause> {
    let name = &found.projection;
    let mut causes = Vec::new();
    let mut add = |cause, object: &str, since: Option<DateTime<Utc>>, text, remedy: String| {
        let (state, object) = (State::Attention, Some(object.to_owned()));
        causes.push(Cause { state, cause, object, since, text, remedy });
    };
    if let Some(files) = &found.files {
        let remedy = "OPERATIONS.md says more under \"Files in service\"".to_owned();
        add("other_files", name, None, files.clone(), remedy);
    }
    if found.parked > 0 {
        let streams = counted(found.parked, "stream is", "streams are");
        let text = format!("{streams} parked, {} in conflict", found.conflicts);
        add("parked", name, None, text, format!("see `projector parked list {name}`"));
    }
    if let Some(letters) = found.dead_letters.filter(|letters| *letters > 0) {
        let text = format!("{} wait", counted(letters, "dead letter", "dead letters"));
        add("dead_letters", name, None, text, format!("see `projector dead list {name}`"));
    }
    let missing = found.queues.iter().filter(|queue| queue.ready.is_none());
    for queue in missing.filter(|_| found.state == Condition::Following) {
        let text = format!("the queue {} does not exist", queue.name);
        let remedy = "`projector topology apply` declares it".to_owned();
        add("no_queue", &queue.name, None, text, remedy);
    }
    if let Some(job) = found.rebuild.as_ref().filter(|job| job.state == JobState::Failed) {
        let reason = job.reason.as_deref().unwrap_or("unknown");
        let text = format!("the last rebuild failed ({reason})");
        let remedy = format!("run `projector rebuild start {name}` again");
        add("rebuild_failed", &job.host, Some(job.changed_at), text, remedy);
    }
    causes
}

/// A lag without another cause, with what is known of the events on their way.
fn of_lag(found: &Found) -> Option<Cause> {
    let lag = found.lag.filter(|lag| lag.seconds >= LONG_LAG_SECONDS)?;
    let ready: u64 = found.queues.iter().filter_map(|queue| queue.ready).map(u64::from).sum();
    let unsettled: u64 = found.queues.iter().map(|queue| queue.unsettled).sum();
    Some(Cause {
        state: State::Attention,
        cause: "lag",
        object: Some(found.projection.clone()),
        since: Some(since(lag.seconds)),
        text: format!(
            "{} not applied, and no cause was found; {} ready in its queues, and its instances have {unsettled} \
             unsettled ones",
            counted(lag.events, "event is", "events are"),
            counted(ready, "message is", "messages are"),
        ),
        remedy: "if these numbers are small, another program may consume its queues: `rabbitmqctl \
                 list_consumers` names it"
            .to_owned(),
    })
}
