//! The instances that share the queues of a projection, and their heartbeats.

use serde::Serialize;
use sqlx::{query, query_as, query_scalar};
use uuid::Uuid;

use crate::session::within;
use crate::{Error, Ledger, Session};

/// An instance with a recent heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Its id, which is new at each start.
    pub id: Uuid,
    /// Its host and process id.
    pub host: String,
    /// The number of partitions in its configuration.
    pub of: u16,
    /// The partitions whose deliveries it receives.
    pub partitions: Vec<u16>,
}

/// In seconds. An instance without a heartbeat for this time is assumed to have stopped.
const EXPIRES_AFTER: u32 = 2;
/// In seconds. After this time, the others delete the row of an instance that was killed.
const DELETED_AFTER: u32 = 10;

impl Session {
    /// Writes the heartbeat of this instance. Returns all instances with a recent heartbeat.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn heartbeat(
        &mut self,
        ledger: &Ledger,
        own: &Instance,
    ) -> Result<Vec<Instance>, Error> {
        let partitions = serde_json::Value::from(own.partitions.clone()).to_string();
        let note = query(
            "INSERT INTO projector_instances (projection, instance, host, shares, partitions, seen_at)
             VALUES (?, ?, ?, ?, ?, UTC_TIMESTAMP(6)) AS new
             ON DUPLICATE KEY UPDATE partitions = new.partitions, seen_at = new.seen_at",
        )
        .bind(ledger.projection())
        .bind(own.id.to_string())
        .bind(&own.host)
        .bind(own.of)
        .bind(partitions)
        .execute(&mut self.connection);
        within("writing the heartbeat", note).await?;
        let forget = query(
            "DELETE FROM projector_instances
             WHERE projection = ? AND seen_at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND",
        )
        .bind(ledger.projection())
        .bind(DELETED_AFTER)
        .execute(&mut self.connection);
        within("deleting old heartbeats", forget).await?;
        self.instances(ledger).await
    }

    /// The instances with a recent heartbeat, sorted by id.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn instances(&mut self, ledger: &Ledger) -> Result<Vec<Instance>, Error> {
        let read = query_as(
            "SELECT instance, host, shares, partitions FROM projector_instances
             WHERE projection = ? AND seen_at > UTC_TIMESTAMP(6) - INTERVAL ? SECOND
             ORDER BY instance",
        )
        .bind(ledger.projection())
        .bind(EXPIRES_AFTER)
        .fetch_all(&mut self.connection);
        let rows: Vec<(String, String, u16, String)> =
            within("reading the instances", read).await?;
        let instance = |(id, host, of, partitions): (String, String, u16, String)| {
            let broken = || Error::Instance { host: host.clone() };
            let partitions = serde_json::from_str(&partitions).map_err(|_json| broken())?;
            let id = Uuid::parse_str(&id).map_err(|_uuid| broken())?;
            Ok(Instance { id, host, of, partitions })
        };
        rows.into_iter().map(instance).collect()
    }

    /// Deletes the heartbeat of an instance that stops, so that the others need not wait until it
    /// expires.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn leave(&mut self, ledger: &Ledger, instance: Uuid) -> Result<(), Error> {
        let leave = query("DELETE FROM projector_instances WHERE projection = ? AND instance = ?")
            .bind(ledger.projection())
            .bind(instance.to_string())
            .execute(&mut self.connection);
        within("deleting the heartbeat", leave).await.map(drop)
    }

    /// The recorded number of queues; `None` if none was recorded.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn partitions(&mut self, ledger: &Ledger) -> Result<Option<u16>, Error> {
        let read = query_scalar("SELECT partitions FROM projector_projections WHERE name = ?")
            .bind(ledger.projection())
            .fetch_optional(&mut self.connection);
        let found: Option<Option<u16>> = within("reading a projection", read).await?;
        Ok(found.flatten())
    }

    /// Records the number of queues that share the events.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn set_partitions(&mut self, ledger: &Ledger, partitions: u16) -> Result<(), Error> {
        let note = query("UPDATE projector_projections SET partitions = ? WHERE name = ?")
            .bind(partitions)
            .bind(ledger.projection())
            .execute(&mut self.connection);
        within("recording the number of queues", note).await.map(drop)
    }
}
