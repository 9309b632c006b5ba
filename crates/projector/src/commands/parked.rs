//! `projector parked`, `pause` and `resume`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::Subcommand;
use daemon::{Exit, Failure};
use domain_events::StreamRange;
use read_model::{ParkedStream, ReadModel, Session, SkippedEvent};
use serde::Serialize;

use super::{failure, model, open_mysql, open_store};
use crate::Settings;
use crate::error::Error as WorkError;
use crate::heal::{Decision, ParkedError, retry_or_skip};
use daemon::output::{Format, actor, counted, say};

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
        #[command(flatten)]
        format: Format,
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
        #[command(flatten)]
        format: Format,
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
        #[command(flatten)]
        format: Format,
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
            Self::Show { projection, stream, payload, format } => {
                let shown = show(settings, projection, stream, *payload).await?;
                format.print(&shown, details)
            }
            Self::Retry { projection, streams, all: _, error, format } => {
                let retried = retry(settings, projection, streams, error.as_deref()).await?;
                format.print(&retried, Retried::text)?;
                retried.result()
            }
            Self::Skip { projection, stream, reason, format } => {
                let skipped = skip(settings, projection, stream, reason).await?;
                format.print(&skipped, Skipped::text)
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
            "{}  version {}  {}  {}, since {since}\n    {}",
            stream.stream_id,
            stream.version,
            stream.event_type,
            counted(stream.attempts, "attempt", "attempts"),
            stream.reason
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

/// A parked stream with the event that stopped it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    stream: ParkedStream,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

async fn show(
    settings: &Settings,
    projection: &str,
    stream: &str,
    payload: bool,
) -> Result<Shown, Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    let stream = find(&mut session, &model, stream).await?;
    session.close().await;
    if !payload {
        return Ok(Shown { stream, payload: None });
    }
    let mut store = open_store(settings).await?;
    let (stream_id, version) = (stream.stream_id.clone(), stream.version);
    let wanted = StreamRange { stream_id, from: version, to: version };
    let events = store.read_streams(&[wanted], 1).await.map_err(failure)?;
    store.close().await;
    let payload = events.first().map(|event| event.data.as_str().to_owned());
    Ok(Shown { stream, payload })
}

fn details(Shown { stream, payload }: &Shown) -> String {
    let ParkedStream { stream_id, version, event_id, event_type, reason, attempts, .. } = stream;
    let position = stream.position.map_or_else(|| "unknown".to_owned(), |it| it.get().to_string());
    let attempts = counted(attempts, "attempt", "attempts");
    let since = stream.parked_at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let applied = stream.applied_event_id;
    let applied = applied.map_or_else(String::new, |id| format!("\napplied   {id}"));
    let payload = payload.as_ref().map_or_else(String::new, |it| format!("\npayload   {it}"));
    format!(
        "stream    {stream_id}\nevent     {event_id} ({event_type}), version {version}{applied}\n\
         position  {position}\nreason    {reason}\nparked    since {since}, {attempts}{payload}"
    )
}

/// The result of a retry.
#[derive(Default, Serialize)]
struct Retried {
    /// The number of streams that go on.
    resumed: usize,
    /// Those that stay parked.
    parked: Vec<StillParked>,
}

#[derive(Serialize)]
struct StillParked {
    stream: String,
    reason: String,
}

impl Retried {
    fn text(&self) -> String {
        let stays = |StillParked { stream, reason }: &StillParked| {
            format!("{stream} stays parked: {reason}\n")
        };
        let resumed = counted(self.resumed, "stream goes on", "streams go on");
        let left = counted(self.parked.len(), "stays parked", "stay parked");
        format!("{}{resumed}, {left}", self.parked.iter().map(stays).collect::<String>())
    }

    /// Fails if a stream stays parked.
    fn result(&self) -> Result<(), Failure> {
        if self.parked.is_empty() {
            return Ok(());
        }
        let error = anyhow::anyhow!(
            "{}; fix the handlers and retry, or run `projector parked skip`",
            counted(self.parked.len(), "stream stays parked", "streams stay parked")
        );
        Err(Failure::new(Exit::Failed, error))
    }
}

async fn retry(
    settings: &Settings,
    projection: &str,
    streams: &[String],
    error: Option<&str>,
) -> Result<Retried, Failure> {
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
    let mut retried = Retried::default();
    for stream in &chosen {
        let mut stays = |reason| {
            retried.parked.push(StillParked { stream: stream.stream_id.to_string(), reason });
        };
        match retry_or_skip(&mut session, &model, &mut store, stream, Decision::Retry).await {
            Ok(part) => {
                let actor = actor();
                let audited = session.audit(&model.ledger, Some(stream), "retry", "", &actor);
                audited.await.map_err(failure)?;
                match part.parked {
                    None => retried.resumed += 1,
                    Some(parked) => {
                        stays(format!("version {}: {}", parked.version, parked.reason));
                    }
                }
            }
            // Another retry was faster.
            Err(ParkedError::NotParked { .. }) => retried.resumed += 1,
            Err(
                error
                @ (ParkedError::WrongEvent { .. } | ParkedError::Work(WorkError::Hole { .. })),
            ) => stays(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    store.close().await;
    session.close().await;
    Ok(retried)
}

/// The result of a skip.
#[derive(Serialize)]
struct Skipped {
    stream: String,
    event_id: String,
    /// The number of later events that were applied.
    applied: usize,
    /// Why the stream is parked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    parked: Option<String>,
}

impl Skipped {
    fn text(&self) -> String {
        let Self { stream, event_id, applied, parked } = self;
        match parked {
            None => format!(
                "event {event_id} is skipped, and {} applied: {stream} goes on",
                counted(applied, "later event is", "later events are")
            ),
            Some(reason) => {
                format!("event {event_id} is skipped; {stream} is parked again at {reason}")
            }
        }
    }
}

async fn skip(
    settings: &Settings,
    projection: &str,
    stream: &str,
    reason: &str,
) -> Result<Skipped, Failure> {
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
    Ok(Skipped {
        stream: stream.stream_id.to_string(),
        event_id: stream.event_id.to_string(),
        applied: part.applied,
        parked: part.parked.map(|it| format!("version {}: {}", it.version, it.reason)),
    })
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

/// Fails while a decision about lost events is due.
async fn require_not_diverged(session: &mut Session, model: &ReadModel) -> Result<(), Failure> {
    let paused = session.paused(&model.ledger).await.map_err(failure)?;
    match paused {
        Some((reason, _since)) if session.is_diverged(&model.ledger).await.map_err(failure)? => {
            Err(WorkError::Diverged { reason }.into())
        }
        _ => Ok(()),
    }
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
        require_not_diverged(&mut session, &model).await?;
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
