//! A queue that receives every message, and its consumer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::account::lock;

/// The name of the queue.
pub(crate) const QUEUE: &str = "chaos.wire";
const EXCHANGE: &str = "events";
/// Small, so that the queue fills soon when nothing is settled.
const PREFETCH: u16 = 20;
const PAUSE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(10);

/// The messages seen on the wire.
#[derive(Default)]
pub(crate) struct Seen {
    /// How often each event was published.
    pub(crate) copies: HashMap<Uuid, u32>,
    pub(crate) inverted: Vec<Inversion>,
    highest: HashMap<String, i64>,
}

impl Seen {
    fn note(&mut self, message: Message, redelivered: bool) {
        let copies = self.copies.entry(message.event_id).or_default();
        if *copies > 0 && redelivered {
            return;
        }
        *copies += 1;
        if *copies == 1 {
            let highest = self.highest.entry(message.stream).or_default();
            if message.version < *highest {
                self.inverted.push(Inversion { event_id: message.event_id, at: Utc::now() });
            }
            *highest = message.version.max(*highest);
        }
    }

    /// Messages beyond the first of each event.
    pub(crate) fn duplicates(&self) -> u64 {
        self.copies.values().map(|copies| u64::from(copies - 1)).sum()
    }
}

/// An event whose first copy came after one with a higher version of the same stream.
#[derive(Clone, Copy)]
pub(crate) struct Inversion {
    pub(crate) event_id: Uuid,
    pub(crate) at: DateTime<Utc>,
}

struct Message {
    event_id: Uuid,
    stream: String,
    version: i64,
}

/// Reads the queue, and reconnects after each failure of the broker.
pub(crate) struct Wire {
    pub(crate) seen: Arc<Mutex<Seen>>,
    /// While true, nothing is read, so that the queue fills.
    pub(crate) pause: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl Wire {
    /// Begins to watch; returns when the queue is bound.
    pub(crate) async fn watch(url: &str) -> Self {
        let (seen, pause) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let mut task = JoinSet::new();
        let (url, log, paused) = (url.to_owned(), Arc::clone(&seen), Arc::clone(&pause));
        let (bound, is_bound) = oneshot::channel();
        task.spawn(async move {
            let mut bound = Some(bound);
            loop {
                // Whatever failed, the broker will come back.
                drop(read(&url, &log, &paused, &mut bound).await);
                sleep(PAUSE).await;
            }
        });
        is_bound.await.expect("the wire can be watched");
        Self { seen, pause, _task: task }
    }
}

async fn read(
    url: &str,
    log: &Mutex<Seen>,
    pause: &AtomicBool,
    bound: &mut Option<oneshot::Sender<()>>,
) -> Result<(), lapin::Error> {
    let Ok(consume) = timeout(LIMIT, consume(url)).await else { return Ok(()) };
    let (_connection, mut deliveries) = consume?;
    if let Some(bound) = bound.take() {
        bound.send(()).ok();
    }
    // After a silence the connection or the consumer may be dead, so both are made anew.
    while let Ok(Some(next)) = timeout(LIMIT, deliveries.next()).await {
        let next = next?;
        if let Some(message) = message(&next.properties) {
            lock(log).note(message, next.redelivered);
        }
        while pause.load(Ordering::Relaxed) {
            sleep(PAUSE / 10).await;
        }
        let Ok(settled) = timeout(LIMIT, next.acker.ack(BasicAckOptions::default())).await else {
            return Ok(());
        };
        settled?;
    }
    Ok(())
}

async fn consume(url: &str) -> Result<(Connection, Consumer), lapin::Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let none = FieldTable::default;
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, none()).await?;
    let mut quorum = none();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), quorum).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(QUEUE.into(), EXCHANGE.into(), "#".into(), bind, none()).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let consume = BasicConsumeOptions::default();
    let deliveries = channel.basic_consume(QUEUE.into(), "chaos".into(), consume, none()).await?;
    Ok((connection, deliveries))
}

fn message(properties: &BasicProperties) -> Option<Message> {
    let headers = properties.headers().as_ref()?.inner();
    let stream = headers.get("stream_id")?.as_long_string()?;
    Some(Message {
        event_id: Uuid::parse_str(properties.message_id().as_ref()?.as_str()).ok()?,
        stream: String::from_utf8(stream.as_bytes().to_vec()).ok()?,
        version: headers.get("stream_version")?.as_long_long_int()?,
    })
}
