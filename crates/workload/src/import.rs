//! Importing JSON Lines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow};
use chrono::DateTime;
use daemon::{Exit, Failure};
use domain_events::{EventId, EventType, StreamId};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::writers::{Input, NewEvent};

/// One event of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line<'l> {
    stream_id: String,
    #[serde(rename = "type")]
    event_type: String,
    occurred_at: String,
    #[serde(borrow)]
    data: &'l RawValue,
    event_id: Option<String>,
    schema_version: Option<u32>,
    #[serde(borrow)]
    metadata: Option<&'l RawValue>,
}

/// The reason why a line is not an event. It never quotes the line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadLine(pub(crate) String);

/// An event as `append_to_stream` takes it.
#[derive(Serialize)]
struct Element<'l> {
    event_id: String,
    #[serde(rename = "type")]
    event_type: &'l str,
    occurred_at: &'l str,
    data: &'l RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'l RawValue>,
}

/// The namespace of the ids that are computed for events without one.
const NAMESPACE: Uuid = Uuid::from_u128(0x8f0d_6a52_58a1_5f60_9c3e_1d2b_7a41_03c7);

/// Gives the events of a file to the writers, up to the first bad line.
///
/// `read` counts the bytes read from the file. Returns the number of events.
pub(crate) fn import(path: &Path, input: &Input, read: &Arc<AtomicU64>) -> Result<u64, Failure> {
    let shown = path.display();
    let unreadable = |error| {
        let error = anyhow::Error::new(error).context(format!("reading {shown}"));
        Failure::new(Exit::Data, error)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut file = BufReader::with_capacity(1 << 16, Counted { file, read: Arc::clone(read) });
    let zipped = file.fill_buf().map_err(unreadable)?.starts_with(&[0x1f, 0x8b]);
    let mut lines: Box<dyn BufRead> =
        if zipped { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) };

    let mut places: HashMap<String, u64> = HashMap::new();
    let (mut line, mut number, mut events) = (String::new(), 0_u64, 0);
    loop {
        number += 1;
        line.clear();
        let length = lines.read_line(&mut line).with_context(|| {
            format!("{shown}, line {number} cannot be read; the {events} events before it are kept")
        });
        if length.map_err(|error| Failure::new(Exit::Data, error))? == 0 {
            return Ok(events);
        }
        if line.trim().is_empty() {
            continue;
        }
        let event = Line::parse(&line).and_then(|event| event.convert(&mut places));
        let event = event.map_err(|BadLine(reason)| {
            let error = anyhow!(
                "{shown}, line {number}: {reason}; the {events} events before it are imported: \
                 fix it and import the file again to continue"
            );
            Failure::new(Exit::Data, error)
        })?;
        if !input.blocking_send(NewEvent { line: Some(number), ..event }) {
            // The writer reports the reason.
            return Ok(events);
        }
        events += 1;
    }
}

impl<'l> Line<'l> {
    /// Reads one line.
    ///
    /// # Errors
    ///
    /// With the reason, when it is not a JSON object with the right fields.
    pub(crate) fn parse(line: &'l str) -> Result<Self, BadLine> {
        serde_json::from_str(line).map_err(|error| {
            let text = error.to_string();
            // serde quotes values; the names of fields may be shown.
            let shown = ["missing field", "unknown field", "duplicate field"];
            let shown = shown.iter().any(|start| text.starts_with(start));
            let reason = text.split(" at line ").next().unwrap_or_default();
            let reason = if shown { reason } else { "not an event" };
            BadLine(format!("{reason} (column {})", error.column()))
        })
    }

    /// The event to append. If it has no id, its content and its place among the events of its stream
    /// determine one.
    fn convert(self, places: &mut HashMap<String, u64>) -> Result<NewEvent, BadLine> {
        let bad = |field: &str, error: &dyn std::fmt::Display| BadLine(format!("{field}: {error}"));
        let stream_id =
            StreamId::new(self.stream_id.as_str()).map_err(|error| bad("stream_id", &error))?;
        EventType::new(self.event_type.as_str()).map_err(|error| bad("type", &error))?;
        if DateTime::parse_from_rfc3339(&self.occurred_at).is_err() {
            return Err(bad("occurred_at", &"not a time such as 2026-01-31T09:30:00.000Z"));
        }
        for (field, json) in [("data", Some(self.data)), ("metadata", self.metadata)] {
            if json.is_some_and(|json| !json.get().starts_with('{')) {
                return Err(bad(field, &"not a JSON object"));
            }
        }
        let place = places.entry(self.stream_id).or_default();
        *place += 1;
        let event_id = if let Some(id) = &self.event_id {
            EventId::parse(id).map_err(|error| bad("event_id", &error))?.to_string()
        } else {
            let (place, data) = (place.to_string(), self.data.get());
            let name = [stream_id.as_str(), &place, &self.event_type, &self.occurred_at, data];
            Uuid::new_v5(&NAMESPACE, name.join("\n").as_bytes()).to_string()
        };
        let element = Element {
            event_id,
            event_type: &self.event_type,
            occurred_at: &self.occurred_at,
            data: self.data,
            schema_version: self.schema_version,
            metadata: self.metadata,
        };
        let json = serde_json::to_string(&element).map_err(|error| BadLine(error.to_string()))?;
        Ok(NewEvent { stream_id, json, line: None })
    }
}

struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"stream_id":"order-1","type":"OrderPlaced","occurred_at":"2026-01-31T09:30:00Z","data":{"total":19.90}}"#;

    fn convert(line: &str) -> Result<String, String> {
        let event = Line::parse(line).and_then(|line| line.convert(&mut HashMap::new()));
        event.map(|event| event.json).map_err(|BadLine(reason)| reason)
    }

    #[test]
    fn a_line_becomes_an_event_for_append_to_stream() {
        let json = convert(GOOD).unwrap();
        assert!(json.contains(r#""type":"OrderPlaced""#), "{json}");
        assert!(json.contains(r#""data":{"total":19.90}"#), "{json}");
    }

    #[test]
    fn the_same_line_at_the_same_place_has_the_same_id() {
        let ids = |lines: [&str; 3]| {
            let mut places = HashMap::new();
            lines.map(|line| Line::parse(line).unwrap().convert(&mut places).unwrap().json)
        };
        let other = GOOD.replace("order-1", "order-2");
        let once = ids([GOOD, GOOD, &other]);
        assert_eq!(once, ids([GOOD, GOOD, &other]));
        assert_ne!(once[0], once[1], "a repeated event of a stream is another event");
        assert_ne!(once[0], once[2]);
    }

    #[test]
    fn a_bad_line_has_its_reason_and_is_not_quoted() {
        for (line, reason) in [
            ("", "not an event (column 0)"),
            (r#"{"card": 4111}"#, "unknown field `card`"),
            (r#"{"stream_id":"order-1"}"#, "missing field `type`"),
            (&GOOD.replace("order-1", "-1"), "stream_id: a stream id must be"),
            (&GOOD.replace("OrderPlaced", "a b"), "type: an event type must be"),
            (&GOOD.replace("2026-01-31", "31.1."), "occurred_at: not a time such as"),
            (&GOOD.replace(r#"{"total":19.90}"#, "4111"), "data: not a JSON object"),
            (&GOOD.replace("\"order-1\"", "4111"), "not an event (column"),
            (&GOOD.replace("}}", "}} x"), "not an event (column"),
        ] {
            let shown = convert(line).unwrap_err();
            assert!(shown.starts_with(reason), "{shown:?} should start with {reason:?}");
            assert!(!shown.contains("4111"), "{shown}");
        }
    }
}
