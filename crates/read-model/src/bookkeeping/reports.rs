//! What each projector says of itself. `projector status` learns here why a projector does not follow its
//! queues.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{query, query_as};
use uuid::Uuid;

use crate::session::within;
use crate::{Error, Session};

/// In seconds. A projector without a report for this time is assumed to have stopped.
const EXPIRES_AFTER: u32 = 5;

/// What a projector says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its id, which is new at each start.
    pub instance: Uuid,
    /// Its host and process id.
    pub host: String,
    /// The projections that it runs.
    pub projections: Vec<Run>,
    /// What does not work.
    pub failing: Vec<Failing>,
    /// When it said so.
    pub seen_at: DateTime<Utc>,
}

/// A projection that a projector runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub projection: String,
    /// What its queues have brought, by their number.
    pub queues: Vec<QueueUse>,
}

/// What a queue has brought to a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueUse {
    /// How often it began to consume the queue.
    #[serde(default)]
    pub opened: u64,
    /// The number of deliveries so far.
    pub delivered: u64,
    /// The number of deliveries that are not settled yet.
    pub unsettled: u64,
}

/// A component of a projector that does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// Its name in `/readyz`.
    pub component: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// A row of `projector_reports`.
type ReportRow = (String, String, String, String, NaiveDateTime);

impl Session {
    /// Records what this projector says of itself.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn report(
        &mut self,
        (instance, host): (Uuid, &str),
        projections: &[Run],
        failing: &[Failing],
    ) -> Result<(), Error> {
        let note = query(
            "INSERT INTO projector_reports (instance, host, projections, failing, seen_at)
             VALUES (?, ?, ?, ?, UTC_TIMESTAMP(6)) AS new
             ON DUPLICATE KEY UPDATE projections = new.projections, failing = new.failing,
                                     seen_at = new.seen_at",
        )
        .bind(instance.to_string())
        .bind(host)
        .bind(json!(projections).to_string())
        .bind(json!(failing).to_string())
        .execute(&mut self.connection);
        within("writing a report", note).await?;
        let forget = query(
            "DELETE FROM projector_reports WHERE seen_at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND",
        )
        .bind(EXPIRES_AFTER * 2)
        .execute(&mut self.connection);
        within("deleting old reports", forget).await.map(drop)
    }

    /// The recent reports of all projectors, sorted by host.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn reports(&mut self) -> Result<Vec<Report>, Error> {
        let read = query_as(
            "SELECT instance, host, projections, failing, seen_at FROM projector_reports
             WHERE seen_at > UTC_TIMESTAMP(6) - INTERVAL ? SECOND
             ORDER BY host, instance",
        )
        .bind(EXPIRES_AFTER)
        .fetch_all(&mut self.connection);
        let rows: Vec<ReportRow> = within("reading the reports", read).await?;
        let report = |row: ReportRow| {
            let (instance, host, projections, failing, seen_at) = row;
            let invalid = || Error::Report { host: host.clone() };
            Ok(Report {
                instance: Uuid::parse_str(&instance).map_err(|_uuid| invalid())?,
                projections: serde_json::from_str(&projections).map_err(|_json| invalid())?,
                failing: serde_json::from_str(&failing).map_err(|_json| invalid())?,
                seen_at: seen_at.and_utc(),
                host,
            })
        };
        rows.into_iter().map(report).collect()
    }

    /// Deletes the report of a projector that stops.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn withdraw_report(&mut self, instance: Uuid) -> Result<(), Error> {
        let withdraw = query("DELETE FROM projector_reports WHERE instance = ?")
            .bind(instance.to_string())
            .execute(&mut self.connection);
        within("deleting a report", withdraw).await.map(drop)
    }
}
