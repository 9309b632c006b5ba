//! A consumer between relay and projector that shuffles, repeats and drops messages.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Stack;

/// The number of messages that are shuffled together.
const WINDOW: usize = 300;

/// Forwards messages from one exchange to another, shuffled, repeated and incomplete.
pub struct Disturber {
    dropped: Arc<Mutex<HashSet<String>>>,
    handled: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Disturber {
    /// Forwards the messages of the exchange `raw` in any order and each up to three times. Drops
    /// one in a hundred.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn start(stack: &Stack, seed: u64) -> Self {
        let connection = stack.amqp().await;
        let channel = connection.create_channel().await.expect("a channel opens");
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        for exchange in ["raw", "events"] {
            let arguments = FieldTable::default();
            channel
                .exchange_declare(exchange.into(), ExchangeKind::Topic, durable, arguments)
                .await
                .expect("the exchange is declared");
        }
        channel
            .queue_declare("raw".into(), QueueDeclareOptions::durable(), FieldTable::default())
            .await
            .expect("the queue is declared");
        let bind = QueueBindOptions::default();
        channel
            .queue_bind("raw".into(), "raw".into(), "#".into(), bind, FieldTable::default())
            .await
            .expect("the queue is bound");
        let confirm = ConfirmSelectOptions::default();
        channel.confirm_select(confirm).await.expect("the channel confirms");
        let dropped = Arc::default();
        let handled = Arc::default();
        let mut tasks = JoinSet::new();
        let (drops, count) = (Arc::clone(&dropped), Arc::clone(&handled));
        tasks.spawn(disturb(connection, channel, drops, count, seed));
        Self { dropped, handled, _tasks: tasks }
    }

    /// The number of messages that were forwarded or dropped.
    pub fn handled(&self) -> usize {
        self.handled.load(Ordering::Relaxed)
    }

    /// The number of dropped messages.
    pub fn dropped(&self) -> usize {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

async fn disturb(
    _connection: lapin::Connection,
    channel: Channel,
    dropped: Arc<Mutex<HashSet<String>>>,
    handled: Arc<AtomicUsize>,
    seed: u64,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let consume = BasicConsumeOptions::default();
    let mut deliveries = channel
        .basic_consume("raw".into(), "disturber".into(), consume, FieldTable::default())
        .await
        .expect("the consumer starts");
    loop {
        let mut window: Vec<Delivery> = Vec::new();
        let mut copies: Vec<usize> = Vec::new();
        while window.len() < WINDOW {
            let Ok(next) = timeout(Duration::from_millis(200), deliveries.next()).await else {
                break;
            };
            let Some(Ok(delivery)) = next else { return };
            let times = if random.random_bool(0.01) { 0 } else { random.random_range(1..=3) };
            if times == 0 {
                let id = delivery
                    .properties
                    .message_id()
                    .as_ref()
                    .expect("the message has an id")
                    .to_string();
                dropped.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
            }
            copies.extend(std::iter::repeat_n(window.len(), times));
            window.push(delivery);
        }
        copies.shuffle(&mut random);
        let mut confirms = Vec::with_capacity(copies.len());
        for copy in copies {
            let Delivery { routing_key, properties, data, .. } = &window[copy];
            let publish = channel
                .basic_publish(
                    "events".into(),
                    routing_key.clone(),
                    BasicPublishOptions::default(),
                    data,
                    properties.clone(),
                )
                .await
                .expect("the message is sent");
            confirms.push(publish);
        }
        for confirm in confirms {
            assert!(
                confirm.await.expect("a confirm arrives").is_ack(),
                "the broker accepts the message"
            );
        }
        if let Some(last) = window.last() {
            last.acker
                .ack(BasicAckOptions { multiple: true })
                .await
                .expect("the deliveries are acknowledged");
        }
        handled.fetch_add(window.len(), Ordering::Relaxed);
    }
}
