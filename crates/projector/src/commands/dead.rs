//! `projector dead`.

use std::fmt::Write;

use broker::{Connection, DeadLetter, DeadLetters};
use clap::{Args, Subcommand};
use daemon::{Exit, Failure};
use domain_events::HeaderValue;
use read_model::ReadModel;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{failure, model, open_mysql};
use crate::Settings;
use crate::topology::Topology;
use daemon::output::{Format, actor, counted};

#[derive(Subcommand, Debug)]
pub(crate) enum Dead {
    /// List dead letters with their reasons, the oldest first.
    ///
    /// Listed dead letters move behind the others of their queue.
    #[command(after_help = "Example:\n  projector dead list order_summary")]
    List {
        /// The projection.
        projection: String,
        /// List at most this many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        format: Format,
    },
    /// Show one dead letter with its headers.
    #[command(
        after_help = "Example:\n  projector dead show order_summary 018c2c1e-7d4d-7a3b-9f52-8f1f3a3c2b10 --payload"
    )]
    Show {
        /// The projection.
        projection: String,
        /// The message id from the list.
        id: String,
        /// Print the body too.
        #[arg(long)]
        payload: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Put dead letters back into the queue of the projection, after their cause was removed.
    ///
    /// Exit code 65 if none was chosen. A message whose cause remains becomes a dead letter again.
    #[command(
        after_help = "Example:\n  projector dead replay order_summary --error \"does not follow category\""
    )]
    Replay {
        /// The projection.
        projection: String,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        format: Format,
    },
    /// Delete dead letters.
    ///
    /// Exit code 65 if none was chosen.
    #[command(
        after_help = "Example:\n  projector dead discard order_summary --all --reason \"a test, see OPS-12\""
    )]
    Discard {
        /// The projection.
        projection: String,
        #[command(flatten)]
        chosen: Chosen,
        /// The reason. The table `projector_audit` records it with your name and the time.
        #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
        #[command(flatten)]
        format: Format,
    },
}

/// The dead letters of a command.
#[derive(Args, Debug)]
pub(crate) struct Chosen {
    /// The message ids from the list.
    #[arg(required_unless_present_any = ["all", "error"])]
    ids: Vec<String>,
    /// All dead letters.
    #[arg(long, conflicts_with_all = ["ids", "error"])]
    all: bool,
    /// The dead letters whose reason contains this text.
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    error: Option<String>,
}

impl Chosen {
    fn has(&self, letter: &DeadLetter) -> bool {
        let id = letter.message.message_id.as_ref();
        self.all
            || id.is_some_and(|id| self.ids.contains(id))
            || self.error.as_ref().is_some_and(|text| letter.reason().contains(text))
    }
}

/// A dead letter in a list.
#[derive(Debug, Serialize)]
struct Listed {
    message_id: Option<String>,
    event_type: Option<String>,
    reason: String,
    /// The queue from which it came.
    queue: Option<String>,
    routing_key: Option<String>,
    bytes: usize,
}

impl Listed {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            message_id: letter.message.message_id.clone(),
            event_type: letter.message.message_type.clone(),
            reason: letter.reason(),
            queue: letter.queue().map(str::to_owned),
            routing_key: letter.routing_key().map(str::to_owned),
            bytes: letter.message.body.len(),
        }
    }
}

/// What happens to a dead letter.
enum Action {
    Keep,
    Replay,
    Discard,
}

/// The dead-letter queue of a projection.
struct Queue {
    model: ReadModel,
    topology: Topology,
    connection: Connection,
    letters: DeadLetters,
    /// How many messages it has at the beginning of the command.
    count: u32,
}

impl Queue {
    async fn open(settings: &Settings, projection: &str) -> Result<Self, Failure> {
        let model = model(settings, projection)?;
        let connection = Connection::connect(&settings.broker()?).await.map_err(failure)?;
        let Settings { queue_prefix, exchange, .. } = settings;
        let partitions = model.projection.partitions;
        let topology = Topology::of(&model.projection, queue_prefix, exchange, partitions);
        let name = topology.dead_letters();
        let count = connection.ready_messages(name).await.map_err(failure)?;
        let count = count.ok_or_else(|| {
            let error = anyhow::anyhow!(
                "the queue {name} does not exist; `projector topology apply {projection}` declares it"
            );
            Failure::new(Exit::Failed, error)
        })?;
        let letters = connection.dead_letters(name).await.map_err(failure)?;
        Ok(Self { model, topology, connection, letters, count })
    }

    /// Takes each message that was there at the beginning, up to `limit`, and does with it what `decide` says.
    async fn each(
        &mut self,
        limit: u32,
        mut decide: impl FnMut(&DeadLetter) -> Action,
    ) -> Result<(), Failure> {
        for _ in 0..self.count.min(limit) {
            let Some(letter) = self.letters.take().await.map_err(failure)? else { break };
            let settled = match decide(&letter) {
                Action::Keep => self.letters.keep(letter).await,
                Action::Discard => self.letters.discard(letter).await,
                Action::Replay => {
                    let queues = &self.topology.queues;
                    let own = queues.iter().find(|queue| Some(&*queue.name) == letter.queue());
                    // Versions decide the order within a stream, so any queue of the projection will do.
                    let queue = &own.unwrap_or(&queues[0]).name;
                    self.letters.replay(letter, queue).await
                }
            };
            settled.map_err(failure)?;
        }
        Ok(())
    }

    async fn close(self) {
        self.letters.close().await;
        self.connection.close().await;
    }
}

impl Dead {
    pub(crate) async fn run(&self, settings: &Settings) -> Result<(), Failure> {
        match self {
            Self::List { projection, limit, format } => {
                list(settings, projection, *limit, *format).await
            }
            Self::Show { projection, id, payload, format } => {
                let shown = show(settings, projection, id, *payload).await?;
                format.print(&shown, details)
            }
            Self::Replay { projection, chosen, format } => {
                let settled = settle(settings, projection, chosen, None).await?;
                format.print(&settled, Settled::text)
            }
            Self::Discard { projection, chosen, reason, format } => {
                let settled = settle(settings, projection, chosen, Some(reason)).await?;
                format.print(&settled, Settled::text)
            }
        }
    }
}

async fn list(
    settings: &Settings,
    projection: &str,
    limit: u32,
    format: Format,
) -> Result<(), Failure> {
    let mut queue = Queue::open(settings, projection).await?;
    let (mut listed, count) = (Vec::new(), queue.count);
    let keep = |letter: &DeadLetter| {
        listed.push(Listed::of(letter));
        Action::Keep
    };
    queue.each(limit, keep).await?;
    queue.close().await;
    format.print(&listed, |listed| text(listed, count))
}

fn text(listed: &[Listed], count: u32) -> String {
    if listed.is_empty() {
        return "there are no dead letters".to_owned();
    }
    let mut text = listed.iter().fold(String::new(), |mut text, letter| {
        let id = letter.message_id.as_deref().unwrap_or("(no message id)");
        let kind = letter.event_type.as_deref().unwrap_or("(no type)");
        let bytes = counted(letter.bytes, "byte", "bytes");
        writeln!(text, "{id}  {kind}  {bytes}\n    {}", letter.reason)
            .expect("writing to a String cannot fail");
        text
    });
    let rest = (count as usize).saturating_sub(listed.len());
    if rest > 0 {
        write!(text, "and {rest} more; --limit lists more of them")
            .expect("writing to a String cannot fail");
    }
    text
}

async fn show(
    settings: &Settings,
    projection: &str,
    id: &str,
    payload: bool,
) -> Result<Shown, Failure> {
    let mut queue = Queue::open(settings, projection).await?;
    let mut found = None;
    let keep = |letter: &DeadLetter| {
        if letter.message.message_id.as_deref() == Some(id) {
            found = Some(Shown::of(letter, payload));
        }
        Action::Keep
    };
    queue.each(u32::MAX, keep).await?;
    queue.close().await;
    found.ok_or_else(|| none(projection))
}

/// A dead letter with its headers.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    letter: Listed,
    headers: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl Shown {
    fn of(letter: &DeadLetter, payload: bool) -> Self {
        let headers = letter.message.headers.iter().map(|(name, value)| {
            let value = match value {
                HeaderValue::Text(text) => text.as_str().into(),
                HeaderValue::Integer(number) => (*number).into(),
                HeaderValue::Other => Value::Null,
            };
            (name.to_string(), value)
        });
        let body = || String::from_utf8_lossy(&letter.message.body).into_owned();
        Self { letter: Listed::of(letter), headers: headers.collect(), payload: payload.then(body) }
    }
}

fn details(Shown { letter, headers, payload }: &Shown) -> String {
    let unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut text = format!(
        "message   {} ({}), {}\nreason    {}\nqueue     {}\nkey       {}",
        unknown(&letter.message_id),
        unknown(&letter.event_type),
        counted(letter.bytes, "byte", "bytes"),
        letter.reason,
        unknown(&letter.queue),
        unknown(&letter.routing_key),
    );
    for (name, value) in headers {
        write!(text, "\nheader    {name}: {value}").expect("writing to a String cannot fail");
    }
    if let Some(payload) = payload {
        write!(text, "\npayload   {payload}").expect("writing to a String cannot fail");
    }
    text
}

/// The dead letters that were replayed or discarded.
#[derive(Serialize)]
struct Settled {
    action: &'static str,
    /// Their message ids.
    messages: Vec<String>,
}

impl Settled {
    fn text(&self) -> String {
        let letters = counted(self.messages.len(), "dead letter was", "dead letters were");
        format!("{letters} {}", self.action)
    }
}

/// Discards dead letters if there is a reason, and replays them otherwise.
async fn settle(
    settings: &Settings,
    projection: &str,
    chosen: &Chosen,
    discard: Option<&str>,
) -> Result<Settled, Failure> {
    // First, so that nothing changes while MySQL, which records the decision, is away.
    let mut session = open_mysql(settings).await?;
    let mut queue = Queue::open(settings, projection).await?;
    let mut messages = Vec::new();
    let decide = |letter: &DeadLetter| {
        if !chosen.has(letter) {
            return Action::Keep;
        }
        let id = letter.message.message_id.clone();
        messages.push(id.unwrap_or_else(|| "(no message id)".to_owned()));
        if discard.is_some() { Action::Discard } else { Action::Replay }
    };
    let done = queue.each(u32::MAX, decide).await;
    let (recorded, action) = match discard {
        Some(_) => ("dead discard", "discarded"),
        None => ("dead replay", "replayed"),
    };
    let actor = actor();
    for id in &messages {
        let reason = format!("message {id}: {}", discard.unwrap_or("replayed"));
        let audited = session.audit(&queue.model.ledger, None, recorded, &reason, &actor);
        audited.await.map_err(failure)?;
    }
    queue.close().await;
    session.close().await;
    done?;
    if messages.is_empty() {
        return Err(none(projection));
    }
    Ok(Settled { action, messages })
}

fn none(projection: &str) -> Failure {
    let error = anyhow::anyhow!(
        "there is no such dead letter; `projector dead list {projection}` lists those that are"
    );
    Failure::new(Exit::Data, error)
}
