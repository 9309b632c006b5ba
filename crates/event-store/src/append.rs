//! Appending events.

use domain_events::{Json, StreamId};
use sqlx::query;

use crate::session::within;
use crate::{Error, Session};

/// Events for one stream, in the form that `append_to_stream` takes.
#[derive(Debug, Clone)]
pub struct Append {
    /// The stream.
    pub stream_id: StreamId,
    /// A JSON array of `{"event_id", "type", "data", …}`.
    pub events: Json,
}

impl Session {
    /// Appends to several streams, at any version of theirs, in one transaction and one round trip.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when `append_to_stream` refuses a stream's events. Nothing is appended
    /// then, and the session can still be used.
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
                if error.code().is_some_and(|code| code.starts_with("ES")) =>
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
