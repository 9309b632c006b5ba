//! The deliveries of a queue. Each is settled once: acknowledged, or given back.

use std::time::Duration;

use broker::{Connection, Consumer, Delivery, Envelope, Error, Options, Publisher, Queue, Receipt};

use read_model::Committed;

/// How long the broker may take to confirm a dead letter.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// Receives and settles the deliveries of one queue.
pub(crate) struct Deliveries {
    consumer: Consumer,
    options: Options,
    /// A separate connection: a broker that is short of memory stops reading from connections that publish, and
    /// acknowledgements on the same connection would wait too.
    dead_letters: Option<(Connection, Publisher)>,
    dead_letter_queue: String,
}

impl Deliveries {
    /// Starts to consume.
    pub(crate) async fn open(
        connection: &Connection,
        options: &Options,
        queue: &Queue,
        prefetch: u16,
    ) -> Result<Self, Error> {
        Ok(Self {
            consumer: connection.consumer(&queue.name, prefetch).await?,
            options: options.clone(),
            dead_letters: None,
            dead_letter_queue: queue.dead_letters.clone(),
        })
    }

    /// Waits for deliveries and returns at most `max` of them. Cancel-safe.
    pub(crate) async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, Error> {
        self.consumer.next(max).await
    }

    /// The number of deliveries that are not settled yet.
    pub(crate) fn unsettled(&self) -> usize {
        self.consumer.unsettled()
    }

    /// Acknowledges messages whose effects are committed.
    pub(crate) async fn ack(
        &mut self,
        receipts: Vec<Receipt>,
        _proof: &Committed,
    ) -> Result<(), Error> {
        self.consumer.ack(receipts).await
    }

    /// Acknowledges unapplied messages that follow missing events, when those cannot be read for now. If such
    /// messages stayed unsettled, they would fill the prefetch and stop all streams.
    ///
    /// Their events are not lost: the event store has them, and the checkpoint stays before them. The sweeper
    /// or a later message of the stream causes them to be read.
    pub(crate) async fn defer(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        self.consumer.ack(receipts).await
    }

    /// Publishes a message to the dead-letter queue, with the reason in a header. The caller settles the
    /// delivery, whether this succeeds or fails.
    pub(crate) async fn dead_letter(
        &mut self,
        envelope: &Envelope,
        body: &[u8],
        reason: &str,
    ) -> Result<(), Error> {
        let (connection, mut publisher) = match self.dead_letters.take() {
            Some(open) if open.0.is_connected() => open,
            _ => {
                let connection = Connection::connect(&self.options).await?;
                let publisher = connection.publisher("", CONFIRM_LIMIT).await?;
                (connection, publisher)
            }
        };
        publisher.dead_letter(&self.dead_letter_queue, envelope, body, reason).await?;
        self.dead_letters = Some((connection, publisher));
        Ok(())
    }

    /// Acknowledges messages that are in the dead-letter queue.
    pub(crate) async fn ack_dead_letters(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        self.consumer.ack(receipts).await
    }

    /// Ends the consumer. The broker puts unsettled messages back into the queue.
    pub(crate) async fn close(self) {
        self.consumer.close().await;
    }

    /// Puts messages back into the queue, to be delivered again.
    pub(crate) async fn give_back(&mut self, receipts: Vec<Receipt>) -> Result<(), Error> {
        self.consumer.give_back(receipts).await
    }
}
