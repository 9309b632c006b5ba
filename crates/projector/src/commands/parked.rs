//! `projector parked`, `pause` and `resume`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::Subcommand;
use daemon::{Exit, Failure};

use super::{Format, actor, failure, model, open_mysql, open_store, say};
use crate::Settings;
use crate::apply::ReadModel;
use crate::mysql::{ParkedStream, Session};
use crate::refold::{Decision, refold};
use crate::trouble::Trouble;

#[derive(Subcommand, Debug)]
pub(crate) enum Parked {
    /// List the streams that cannot go on.
    List {
        /// The projection.
        projection: String,
        #[command(flatten)]
        format: Format,
    },
    /// Show the event that one stream cannot go on with.
    Show {
        /// The projection.
        projection: String,
        /// The stream.
        stream: String,
        /// Print the payload too.
        #[arg(long)]
        payload: bool,
    },
    /// Try again: each stream is read from the event store, from that event on.
    Retry {
        /// The projection.
        projection: String,
        /// The streams.
        #[arg(required_unless_present_any = ["all", "error"])]
        streams: Vec<String>,
        /// All streams that are parked.
        #[arg(long, conflicts_with_all = ["streams", "error"])]
        all: bool,
        /// Those whose reason has this text.
        #[arg(long, value_name = "TEXT", conflicts_with = "streams")]
        error: Option<String>,
    },
    /// Give up the event that a stream cannot go on with: its effect is left out, and what follows is
    /// applied.
    Discard {
        /// The projection.
        projection: String,
        /// The stream.
        stream: String,
        /// Why; it is recorded in `projector_audit`, with your name and the time.
        #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
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
            Self::Show { projection, stream, payload } => {
                show(settings, projection, stream, *payload).await
            }
            Self::Retry { projection, streams, all: _, error } => {
                retry(settings, projection, streams, error.as_deref()).await
            }
            Self::Discard { projection, stream, reason } => {
                discard(settings, projection, stream, reason).await
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
        let wanted = event_store::Wanted { stream_id, from: version, to: version };
        let events = store.read_streams(&[wanted], 1).await.map_err(Trouble::from)?;
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
    let mut chosen = Vec::new();
    for stream in streams {
        chosen.push(find(&mut session, &model, stream).await?);
    }
    if streams.is_empty() {
        chosen = session.parked(&model.ledger).await.map_err(failure)?;
        chosen.retain(|stream| error.is_none_or(|text| stream.reason.contains(text)));
    }
    let mut store = open_store(settings).await?;
    let (mut gone, mut left) = (0, 0);
    for stream in &chosen {
        match refold(&mut session, &model, &mut store, stream, Decision::Retry).await {
            Ok(part) => {
                let actor = actor();
                let audited = session.audit(&model.ledger, Some(stream), "retry", "", &actor);
                audited.await.map_err(failure)?;
                match part.parked {
                    None => gone += 1,
                    Some(parked) => {
                        left += 1;
                        say(&format!(
                            "{} stays parked, at version {}: {}",
                            parked.stream_id, parked.version, parked.reason
                        ));
                    }
                }
            }
            // Another retry was faster.
            Err(Trouble::NotParked { .. }) => gone += 1,
            Err(trouble @ Trouble::WrongEvent { .. }) => {
                left += 1;
                say(&trouble.to_string());
            }
            Err(trouble) => return Err(trouble.into()),
        }
    }
    store.close().await;
    session.close().await;
    say(&format!("{gone} streams go on, {left} stay parked"));
    if left == 0 {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, anyhow::anyhow!("{left} streams stay parked")))
    }
}

async fn discard(
    settings: &Settings,
    projection: &str,
    stream: &str,
    reason: &str,
) -> Result<(), Failure> {
    let model = model(settings, projection)?;
    let mut session = open_mysql(settings).await?;
    model.prepare(&mut session).await.map_err(failure)?;
    let stream = find(&mut session, &model, stream).await?;
    let mut store = open_store(settings).await?;
    let part = refold(&mut session, &model, &mut store, &stream, Decision::Discard).await?;
    session
        .audit(&model.ledger, Some(&stream), "discard", reason, &actor())
        .await
        .map_err(failure)?;
    store.close().await;
    session.close().await;
    let (event, id) = (stream.event_id, &stream.stream_id);
    say(&match part.parked {
        None => format!(
            "event {event} is left out, and {} after it are applied: {id} goes on",
            part.applied
        ),
        Some(parked) => format!(
            "event {event} is left out; {id} is parked again, at version {}: {}",
            parked.version, parked.reason
        ),
    });
    Ok(())
}

/// Stops a projection until it is resumed.
pub(crate) async fn pause(
    settings: &Settings,
    projection: &str,
    reason: &str,
) -> Result<(), Failure> {
    set_paused(settings, projection, Some(reason)).await
}

/// Lets a paused projection go on.
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
