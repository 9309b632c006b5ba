//! Records the messages of the exchange.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Connection, ExchangeKind};
use tokio::task::JoinSet;

use crate::{Stack, eventually};

/// A message of the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The stream.
    pub stream_id: String,
    /// The version of the event in its stream.
    pub version: i64,
    /// The id of the event.
    pub event_id: String,
}

/// A private queue that receives every event in the order of publishing.
pub struct Tap {
    seen: Arc<Mutex<Vec<Seen>>>,
    _connection: Connection,
    _tasks: JoinSet<()>,
}

impl Tap {
    /// Declares the queue and starts to record.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn open(stack: &Stack) -> Self {
        let connection = stack.amqp().await;
        let channel = connection.create_channel().await.expect("a channel opens");
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let arguments = FieldTable::default;
        channel
            .exchange_declare("events".into(), ExchangeKind::Topic, durable, arguments())
            .await
            .expect("the exchange is declared");
        channel
            .queue_declare("tap".into(), QueueDeclareOptions::durable(), arguments())
            .await
            .expect("the queue is declared");
        let options = QueueBindOptions::default();
        channel
            .queue_bind("tap".into(), "events".into(), "#".into(), options, arguments())
            .await
            .expect("the queue is bound");
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut consumer = channel
            .basic_consume("tap".into(), "tap".into(), options, arguments())
            .await
            .expect("the consumer starts");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                if let Some(message) = read(&delivery.properties) {
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(message);
                }
            }
        });
        Self { seen, _connection: connection, _tasks: tasks }
    }

    /// All messages so far, including copies.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until this number of different events is recorded.
    pub async fn wait_for(&self, events: usize) -> Vec<Seen> {
        eventually(&format!("{events} events are published"), async || {
            let seen = self.seen();
            let different: std::collections::HashSet<_> =
                seen.iter().map(|message| &message.event_id).collect();
            (different.len() >= events).then(|| seen.clone())
        })
        .await
    }
}

/// The number of events that came after one with a higher version of their stream. It is counted by
/// first copies or by last copies.
impl Tap {
    /// Inversions in the order of the first copies.
    pub fn inversions_of_first_copies(seen: &[Seen]) -> usize {
        inversions(seen.iter())
    }

    /// Inversions in the order of the last copies.
    pub fn inversions_of_last_copies(seen: &[Seen]) -> usize {
        let mut last: Vec<_> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for message in seen.iter().rev() {
            if known.insert((&message.stream_id, message.version)) {
                last.push(message);
            }
        }
        inversions(last.into_iter().rev())
    }
}

fn inversions<'s>(seen: impl Iterator<Item = &'s Seen>) -> usize {
    let mut copies = std::collections::HashSet::new();
    let mut highest: HashMap<&str, i64> = HashMap::new();
    let mut inversions = 0;
    for message in seen {
        if !copies.insert((&message.stream_id, message.version)) {
            continue;
        }
        let highest = highest.entry(&message.stream_id).or_default();
        if message.version < *highest {
            inversions += 1;
        }
        *highest = message.version.max(*highest);
    }
    inversions
}

fn read(properties: &lapin::BasicProperties) -> Option<Seen> {
    let headers = properties.headers().as_ref()?.inner();
    let text = headers.get("stream_id")?.as_long_string()?;
    Some(Seen {
        stream_id: String::from_utf8(text.as_bytes().to_vec()).ok()?,
        version: headers.get("stream_version")?.as_long_long_int()?,
        event_id: properties.message_id().as_ref()?.as_str().to_owned(),
    })
}
