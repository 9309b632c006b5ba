//! `projector parked`, `pause` and `resume`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::Subcommand;
use daemon::{Exit, Failure};
use domain_events::StreamRange;
use read_model::{ParkedStream, ReadModel, Session, SkippedEvent};

use super::{failure, model, open_mysql, open_store};
use crate::Settings;
use crate::error::Error as WorkError;
use crate::heal::{Decision, ParkedError, retry_or_skip};
use daemon::output::{Format, actor, say};

#[derive(Subcommand, Debug)]
pub(crate) enum Parked {
    /// List the parked streams, and why each of them was parked.
    #[command(after_help = "Example:\n  projector parked list order_summary")]
    List {
        /// The projection.
        projection: String,
        #[command(flatten)]
        format: Format,
    },
    /// Show the event that stopped a stream.
    #[command(after_help = "Example:\n  projector parked show order_summary order-17 --payload")]
    Show {
        /// The projection.
        projection: String,
        /// The stream.
        stream: String,
        /// Print the payload of the event too.
        #[arg(long)]
        payload: bool,
    },
    /// Read parked streams from the event store and apply them, beginning with the event that stopped them.
    ///
    /// Exit code 1 if a stream stays parked.
    #[command(
        after_help = "Examples:\n  projector parked retry order_summary order-17\n  projector parked \
                            retry order_summary --error \"Data too long\""
    )]
    Retry {
        /// The projection.
        projection: String,
        /// The streams to retry.
        #[arg(required_unless_present_any = ["all", "error"])]
        streams: Vec<String>,
        /// Retry all parked streams.
        #[arg(long, conflicts_with_all = ["streams", "error"])]
        all: bool,
        /// Retry the streams whose reason contains this text.
        #[arg(long, value_name = "TEXT", conflicts_with = "streams")]
        error: Option<String>,
    },
    /// Leave out the event that stopped a stream, and apply the later events. Rebuilds leave it out too.
    #[command(
        alias = "discard",
        after_help = "Example:\n  projector parked skip order_summary order-17 --reason \"test order\""
    )]
    Skip {
        /// The projection.
        projection: String,
        /// The stream.
        stream: String,
        /// The reason. The table `projector_audit` records it with your name and the time.
        #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
    },
    /// List the events that were left out, by whom, and why.
    #[command(after_help = "Example:\n  projector parked skipped order_summary")]
    Skipped {
        /// The projection.
        projection: String,
        #[command(flatten)]
        format: Format,
    },
}

impl Parked {
    pub(crate) async fn run(&self, settings: &Settings) -> Result<(), Failure> {
        match self {
            Self::List { projection, format } => {
                let model = model(settings, projection)?;
                let mut session = open_mysql(settings).await?;
                let parked = session.parked(&model.ledger).await.map_err(failure)?;
                session.close().await;
                format.print(&parked, |parked| list(parked))
            }
            Self::Skipped { projection, format } => {
                let model = model(settings, projection)?;
                let mut session = open_mysql(settings).await?;
                let skipped = session.skipped_events(&model.ledger).await.map_err(failure)?;
                session.close().await;
                format.print(&skipped, |skipped| list_skipped(skipped))
            }
            Self::Show { projection, stream, payload } => {
                show(settings, projection, stream, *payload).await
            }
            Self::Retry { projection, streams, all: _, error } => {
                retry(settings, projection, streams, error.as_deref()).await
            }
            Self::Skip { projection, stream, reason } => {
                skip(settings, projection, stream, reason).await
            }
        }
    }
}

fn list(parked: &[ParkedStream]) -> String {
    if parked.is_empty() {
        return "no stream is parked".to_owned();
    }
    parked.iter().fold(String::new(), |mut text, stream| {
        let since = stream.parked_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        writeln!(
            text,
            "{}  version {}  {}  {} times, since {since}\n    {}",
            stream.stream_id, stream.version, stream.event_type, stream.attempts, stream.reason
        )
        .expect("writing to a String cannot fail");
        text
    })
}

fn list_skipped(skipped: &[SkippedEvent]) -> String {
    if skipped.is_empty() {
        return "no event is skipped".to_owned();
    }
    skipped.iter().fold(String::new(), |mut text, event| {
        let at = event.skipped_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let SkippedEvent { stream_id, version, event_id, reason, login, .. } = event;
        writeln!(text, "{stream_id}  version {version}  {event_id}  {at} by {login}\n    {reason}")
            .expect("writing to a String cannot fail");
        text
    })
}

async fn find(
    session: &mut Session,
    model: &ReadModel,
    stream: &str,
) -> Result<ParkedStream, Failure> {
    let parked = session.parked(&model.ledger).await.map_err(failure)?;
    let found = parked.into_iter().find(|parked| parked.stream_id.as_str() == stream);
    found.ok_or_else(|| {
        let error = anyhow::anyhow!(
            "stream {stream} is not parked; `projector parked list {}` lists those that are",
            model.name()
        );
        Failure::new(Exit::Data, error)
    })
}

async fn show(
    settings: &Settings,
    projection: &str,
    stream: &str,
    payload: bool,
) -> Result<(), Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    let parked = find(&mut session, &model, stream).await?;
    session.close().await;
    let mut shown =
        serde_json::to_value(&parked).map_err(|error| Failure::new(Exit::Failed, error))?;
    if payload {
        let mut store = open_store(settings).await?;
        let (stream_id, version) = (parked.stream_id, parked.version);
        let wanted = StreamRange { stream_id, from: version, to: version };
        let events = store.read_streams(&[wanted], 1).await.map_err(failure)?;
        store.close().await;
        shown["payload"] = events.first().map(|event| event.data.as_str()).into();
    }
    say(&format!("{shown:#}"));
    Ok(())
}

async fn retry(
    settings: &Settings,
    projection: &str,
    streams: &[String],
    error: Option<&str>,
) -> Result<(), Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    model.prepare(&mut session).await.map_err(failure)?;
    WorkError::require_in_service(&model)?;
    let mut chosen = Vec::new();
    for stream in streams {
        chosen.push(find(&mut session, &model, stream).await?);
    }
    if streams.is_empty() {
        chosen = session.parked(&model.ledger).await.map_err(failure)?;
        chosen.retain(|stream| error.is_none_or(|text| stream.reason.contains(text)));
    }
    let mut store = open_store(settings).await?;
    let (mut resumed, mut left) = (0, 0);
    for stream in &chosen {
        match retry_or_skip(&mut session, &model, &mut store, stream, Decision::Retry).await {
            Ok(part) => {
                let actor = actor();
                let audited = session.audit(&model.ledger, Some(stream), "retry", "", &actor);
                audited.await.map_err(failure)?;
                match part.parked {
                    None => resumed += 1,
                    Some(parked) => {
                        left += 1;
                        say(&format!(
                            "{} stays parked at version {}: {}",
                            parked.stream_id, parked.version, parked.reason
                        ));
                    }
                }
            }
            // Another retry was faster.
            Err(ParkedError::NotParked { .. }) => resumed += 1,
            Err(
                error
                @ (ParkedError::WrongEvent { .. } | ParkedError::Work(WorkError::Hole { .. })),
            ) => {
                left += 1;
                say(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    store.close().await;
    session.close().await;
    say(&format!("{resumed} streams go on, {left} stay parked"));
    if left == 0 {
        Ok(())
    } else {
        let error = anyhow::anyhow!(
            "{left} streams stay parked; fix their handlers and retry, or run `projector parked skip`"
        );
        Err(Failure::new(Exit::Failed, error))
    }
}

async fn skip(
    settings: &Settings,
    projection: &str,
    stream: &str,
    reason: &str,
) -> Result<(), Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    model.prepare(&mut session).await.map_err(failure)?;
    WorkError::require_in_service(&model)?;
    let stream = find(&mut session, &model, stream).await?;
    let mut store = open_store(settings).await?;
    let decision = Decision::Skip { reason, actor: &actor() };
    let part = retry_or_skip(&mut session, &model, &mut store, &stream, decision).await?;
    store.close().await;
    session.close().await;
    let (event, id) = (stream.event_id, &stream.stream_id);
    say(&match part.parked {
        None => format!(
            "event {event} is skipped, and {} later events are applied: {id} goes on",
            part.applied
        ),
        Some(parked) => format!(
            "event {event} is skipped; {id} is parked again at version {}: {}",
            parked.version, parked.reason
        ),
    });
    Ok(())
}

/// Pauses a projection.
pub(crate) async fn pause(
    settings: &Settings,
    projection: &str,
    reason: &str,
) -> Result<(), Failure> {
    set_paused(settings, projection, Some(reason)).await
}

/// Resumes a paused projection.
pub(crate) async fn resume(settings: &Settings, projection: &str) -> Result<(), Failure> {
    set_paused(settings, projection, None).await
}

async fn set_paused(
    settings: &Settings,
    projection: &str,
    reason: Option<&str>,
) -> Result<(), Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    if reason.is_none() {
        model.prepare(&mut session).await.map_err(failure)?;
        WorkError::require_in_service(&model)?;
    }
    let changed = session.set_paused(&model.ledger, reason).await.map_err(failure)?;
    let (action, state) = match reason {
        Some(_) => ("pause", "paused"),
        None => ("resume", "not paused"),
    };
    if changed {
        let reason = reason.unwrap_or_default();
        session.audit(&model.ledger, None, action, reason, &actor()).await.map_err(failure)?;
    }
    session.close().await;
    let already = if changed { "" } else { " already" };
    say(&format!("{projection} is{already} {state}"));
    Ok(())
}
