//! The exchange, queues and bindings that a projection needs in RabbitMQ.

use broker::{Binding, Connection, Difference, Error, Kind, Queue};
use futures_util::future::try_join_all;

use projection::Projection;

/// The header that names a message's stream.
const HASHED: &str = "stream_id";
/// The routing key of a binding to a hash exchange is a weight. Every queue gets the same share.
const WEIGHT: &str = "1";

/// The exchange and the queues of a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topology {
    source: String,
    keys: Vec<String>,
    /// The exchange that distributes streams over the queues; `None` for a single queue.
    hash: Option<String>,
    /// One for each partition.
    pub(crate) queues: Vec<Queue>,
}

impl Topology {
    /// The topology of a projection for a number of partitions.
    ///
    /// Queue names contain that number. So after a change of the number, new and previous queues exist side by
    /// side, until the previous ones are empty and removed.
    pub(crate) fn of(projection: &Projection, prefix: &str, source: &str, partitions: u16) -> Self {
        let name = format!("{prefix}.{}", projection.name);
        let dead_letters = format!("{name}.dead");
        let keys: Vec<String> =
            projection.categories.iter().map(|category| format!("{category}.#")).collect();
        let binding = |exchange: &str, key: &str| Binding {
            exchange: exchange.to_owned(),
            key: key.to_owned(),
        };
        let source = source.to_owned();
        if partitions == 1 {
            let bindings = keys.iter().map(|key| binding(&source, key)).collect();
            let queues = vec![Queue { name, dead_letters, bindings }];
            return Self { source, keys, hash: None, queues };
        }
        let hash = format!("{name}.by{partitions}");
        let queue = |number| Queue {
            name: format!("{name}.{number}of{partitions}"),
            dead_letters: dead_letters.clone(),
            bindings: vec![binding(&hash, WEIGHT)],
        };
        let queues = (1..=partitions).map(queue).collect();
        Self { source, keys, hash: Some(hash), queues }
    }

    /// The name of the dead-letter queue, which all queues share.
    pub(crate) fn dead_letters(&self) -> &str {
        &self.queues[0].dead_letters
    }

    /// Declares everything that is missing. Returns whether a queue is new: such a queue lacks the messages
    /// that were published before.
    pub(crate) async fn declare(&self, connection: &Connection) -> Result<bool, Error> {
        connection.declare_exchange(&self.source).await?;
        if let Some(hash) = &self.hash {
            connection.declare_hash_exchange(hash, HASHED, &self.source, &self.keys).await?;
        }
        let mut is_new = false;
        for queue in &self.queues {
            let declared = connection.declare_queue(queue).await?;
            is_new |= declared.is_new;
            if declared.is_patient {
                tracing::info!(
                    queue = queue.name,
                    "an earlier version declared this queue: after the crash of its cluster node it may stand still \
                     for 60 s. OPERATIONS.md says under \"Queues\" how to change that"
                );
            }
        }
        Ok(is_new)
    }

    /// How the exchanges and queues of the broker differ. Bindings are not compared, because AMQP cannot list
    /// them.
    pub(crate) async fn compare(&self, connection: &Connection) -> Result<Vec<Difference>, Error> {
        let source = connection.compare_exchange(&self.source, Kind::Topic).await?;
        let mut found = Vec::from_iter(source);
        if let Some(hash) = &self.hash {
            let kind = Kind::Hash { header: HASHED };
            found.extend(connection.compare_exchange(hash, kind).await?);
        }
        for queue in &self.queues {
            for difference in connection.compare_queue(queue).await? {
                // All queues share the dead-letter queue.
                if !found.contains(&difference) {
                    found.push(difference);
                }
            }
        }
        Ok(found)
    }

    /// Declares the bindings again.
    pub(crate) async fn bind(&self, connection: &Connection) -> Result<(), Error> {
        if let Some(hash) = &self.hash {
            connection.declare_hash_exchange(hash, HASHED, &self.source, &self.keys).await?;
        }
        for queue in &self.queues {
            connection.bind(queue).await?;
        }
        Ok(())
    }

    /// Removes the bindings. Messages that are in the queues stay there.
    pub(crate) async fn cut_off(&self, connection: &Connection) -> Result<(), Error> {
        match &self.hash {
            Some(hash) => connection.cut_off(hash, &self.source, &self.keys).await,
            None => connection.unbind(&self.queues[0]).await,
        }
    }

    /// Removes the queues, which must be empty.
    pub(crate) async fn remove(&self, connection: &Connection) -> Result<(), Error> {
        let queues = self.queues.iter().map(|queue| connection.delete_empty_queue(&queue.name));
        try_join_all(queues).await?;
        match &self.hash {
            Some(hash) => connection.delete_exchange(hash).await,
            None => Ok(()),
        }
    }

    /// The number of messages that wait in all queues.
    pub(crate) async fn ready_messages(&self, connection: &Connection) -> Result<u64, Error> {
        Ok(self.ready_in_each(connection).await?.into_iter().map(u64::from).sum())
    }

    /// The number of messages that wait in each queue.
    pub(crate) async fn ready_in_each(&self, connection: &Connection) -> Result<Vec<u32>, Error> {
        let mut ready = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            ready.push(connection.ready_messages(&queue.name).await?.unwrap_or(0));
        }
        Ok(ready)
    }
}
