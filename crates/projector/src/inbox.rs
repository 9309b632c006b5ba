//! The queue of a projection: deliveries in, and each settled once.

use std::time::Duration;

use broker::{Binding, Connection, Consumer, Delivery, Envelope, Error, Publisher, Queue, Receipt};

use crate::mysql::Committed;
use crate::projection::Projection;

/// How long the broker may take to confirm a dead letter.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// What a projection needs in the broker.
pub(crate) fn queue(projection: &Projection, prefix: &str, exchange: &str) -> Queue {
    let name = format!("{prefix}.{}", projection.name);
    let binding =
        |category| Binding { exchange: exchange.to_owned(), key: format!("{category}.#") };
    Queue {
        dead_letters: format!("{name}.dead"),
        bindings: projection.categories.iter().map(binding).collect(),
        name,
    }
}

/// Takes deliveries of one queue.
pub(crate) struct Inbox {
    consumer: Consumer,
    dead_letters: Publisher,
    dead_letter_queue: String,
}

impl Inbox {
    /// Starts to consume.
    pub(crate) async fn open(
        connection: &Connection,
        queue: &Queue,
        prefetch: u16,
    ) -> Result<Self, Error> {
        Ok(Self {
            dead_letters: connection.publisher("", CONFIRM_LIMIT).await?,
            consumer: connection.consumer(&queue.name, prefetch).await?,
            dead_letter_queue: queue.dead_letters.clone(),
        })
    }

    /// Waits for deliveries; cancel-safe.
    pub(crate) async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, Error> {
        self.consumer.next(max).await
    }

    /// Lets the broker forget messages whose effects are committed.
    pub(crate) async fn ack(
        &mut self,
        receipts: Vec<Receipt>,
        _proof: &Committed,
    ) -> Result<(), Error> {
        self.consumer.ack(receipts).await
    }

    /// Moves a message to the dead-letter queue, with the reason in a header.
    pub(crate) async fn dead_letter(
        &mut self,
        envelope: Envelope,
        body: &[u8],
        reason: &str,
    ) -> Result<(), Error> {
        let queue = &self.dead_letter_queue;
        self.dead_letters.dead_letter(queue, &envelope, body, reason).await?;
        self.consumer.ack(vec![envelope.into_receipt()]).await
    }

    /// Gives messages back, to be delivered again.
    pub(crate) async fn give_back(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        self.consumer.give_back(receipts).await
    }
}
