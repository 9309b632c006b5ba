//! Compares exchanges and queues with their definitions.
//!
//! Bindings are not compared: AMQP 0-9-1 cannot list them, and a message that proves a binding would reach the
//! queue. [`Connection::declare_queue`] declares them again, which changes nothing where they exist.

use lapin::protocol::AMQPSoftError;

use crate::error::is_soft;
use crate::topology::{Kind, Queue, dead_letter_arguments};
use crate::{Connection, Error};

/// A difference between an exchange or a queue and its definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The exchange or queue, such as `queue projector.order_summary`.
    pub object: String,
    /// What differs.
    pub kind: DifferenceKind,
}

/// How an exchange or a queue differs from its definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceKind {
    /// It does not exist.
    Missing,
    /// It has another type or other settings.
    Other {
        /// The broker's answer, which names the first setting that differs, with both values.
        reason: String,
    },
    /// It exists, but its settings cannot be compared: AMQP compares them when it is declared again, and the
    /// login may not declare it.
    Unknown,
    /// The queue waits 60 s for a consumer whose node of the cluster has died, because an earlier version
    /// declared it.
    Patient,
    /// It has no consumer.
    NoConsumer,
}

impl Connection {
    /// Compares an exchange with its definition.
    ///
    /// # Errors
    ///
    /// When a call fails, or the broker does not support the type.
    pub async fn compare_exchange(
        &self,
        name: &str,
        kind: Kind<'_>,
    ) -> Result<Option<Difference>, Error> {
        let difference = |kind| Some(Difference { object: format!("exchange {name}"), kind });
        match self.require_exchange(name).await {
            Err(Error::Call { source, .. }) if is_soft(&source, AMQPSoftError::NOTFOUND) => {
                return Ok(difference(DifferenceKind::Missing));
            }
            exists => exists?,
        }
        // A passive declaration compares neither the type nor the settings.
        match self.declare_as(name, &kind).await {
            Ok(()) => Ok(None),
            Err(Error::Mismatch { reason, .. }) => Ok(difference(DifferenceKind::Other { reason })),
            Err(error) if error.is_forbidden() => Ok(difference(DifferenceKind::Unknown)),
            Err(error) => Err(error),
        }
    }

    /// Compares a queue and its dead-letter queue with their definition.
    ///
    /// # Errors
    ///
    /// When a call fails.
    pub async fn compare_queue(&self, queue: &Queue) -> Result<Vec<Difference>, Error> {
        let mut differences = Vec::new();
        for name in [&queue.dead_letters, &queue.name] {
            let mut differs =
                |kind| differences.push(Difference { object: format!("queue {name}"), kind });
            let Some(found) = self.look_up(name).await? else {
                differs(DifferenceKind::Missing);
                continue;
            };
            let declared = if *name == queue.name {
                self.declare_or_keep(queue).await
            } else {
                self.declare(name, &dead_letter_arguments()).await.map(|owned| (owned, false))
            };
            match declared {
                Ok((true, false)) => {}
                Ok((true, true)) => differs(DifferenceKind::Patient),
                Ok((false, _)) => differs(DifferenceKind::Unknown),
                Err(Error::Mismatch { reason, .. }) => differs(DifferenceKind::Other { reason }),
                Err(error) => return Err(error),
            }
            if *name == queue.name && found.consumer_count() == 0 {
                differs(DifferenceKind::NoConsumer);
            }
        }
        Ok(differences)
    }
}
