//! `projector parked`, `pause` and `resume`.

use std::fmt::Write;

use chrono::SecondsFormat;
use clap::Subcommand;
use daemon::{Exit, Failure};
use domain_events::StreamRange;
use read_model::{ParkedStream, ReadModel, Session};

use super::{actor, failure, model, open_mysql, open_store};
use crate::Settings;
use crate::heal::{Decision, ParkedError, go_on};
use crate::output::{Format, say};

#[derive(Subcommand, Debug)]
pub(crate) enum Parked {
    /// List the streams that cannot go on.
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
        /// Print the payload too.
        #[arg(long)]
        payload: bool,
    },
    /// Try again: read each stream from the event store, from the event that stopped it on.
    #[command(
        after_help = "Examples:\n  projector parked retry order_summary order-17\n  projector parked \
                            retry order_summary --error \"Data too long\""
    )]
    Retry {
        /// The projection.
        projection: String,
        /// The streams.
        #[arg(required_unless_present_any = ["all", "error"])]
        streams: Vec<String>,
        /// All streams that are parked.
        #[arg(long, conflicts_with_all = ["streams", "error"])]
        all: bool,
        /// The streams whose reason contains this text.
        #[arg(long, value_name = "TEXT", conflicts_with = "streams")]
        error: Option<String>,
    },
    /// Leave out the event that stopped a stream, and apply those behind it.
    #[command(
        alias = "discard",
        after_help = "Example:\n  projector parked skip order_summary order-17 --reason \"test order\""
    )]
    Skip {
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
        match go_on(&mut session, &model, &mut store, stream, Decision::Retry).await {
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
            Err(ParkedError::NotParked { .. }) => gone += 1,
            Err(error @ ParkedError::WrongEvent { .. }) => {
                left += 1;
                say(&error.to_string());
            }
            Err(error) => return Err(error.into()),
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

async fn skip(
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
    let part = go_on(&mut session, &model, &mut store, &stream, Decision::Skip).await?;
    session.audit(&model.ledger, Some(&stream), "skip", reason, &actor()).await.map_err(failure)?;
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
