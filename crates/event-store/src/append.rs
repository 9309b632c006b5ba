//! Appends events for the workload generator and the importer; applications call `append_to_stream`.

use domain_events::{Json, StreamId};
use sqlx::query;

use crate::session::within;
use crate::{Error, Session};

/// Events for one stream, as `append_to_stream` takes them.
#[derive(Debug, Clone)]
pub struct Append {
    /// The stream.
    pub stream_id: StreamId,
    /// A JSON array of `{"event_id", "type", "data", …}`.
    pub events: Json,
}

impl Session {
    /// Appends to several streams, whatever their versions, in one transaction and one round trip.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when a stream's events are refused. Then nothing is appended, and the
    /// session can still be used.
    pub async fn append(&mut self, batch: &[Append]) -> Result<(), Error> {
        let streams: Vec<&str> = batch.iter().map(|append| append.stream_id.as_str()).collect();
        let events: Vec<&str> = batch.iter().map(|append| append.events.as_str()).collect();
        let limit = self.client_limit();
        let append = query(
            "SELECT append_to_stream(batch.stream_id, NULL, batch.events::jsonb)
             FROM unnest($1::text[], $2::text[]) AS batch (stream_id, events)",
        )
        .bind(streams)
        .bind(events)
        .execute(&mut self.connection);
        match within(limit, "appending events", append).await {
            Ok(_selected) => Ok(()),
            Err(Error::Statement { source: sqlx::Error::Database(error), .. })
                if error.code().is_some_and(|code| is_about_data(&code)) =>
            {
                Err(Error::Refused {
                    sqlstate: error.code().unwrap_or_default().into_owned(),
                    message: error.message().to_owned(),
                })
            }
            Err(other) => Err(other),
        }
    }
}

/// Whether the events cause the error: `append_to_stream` refused them (class ES), PostgreSQL cannot
/// store a value (class 22), or a constraint forbids it (class 23).
fn is_about_data(sqlstate: &str) -> bool {
    ["ES", "22", "23"].iter().any(|class| sqlstate.starts_with(class))
}
