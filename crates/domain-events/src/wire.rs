//! The wire format: an event as an AMQP 0-9-1 message.
//!
//! | AMQP              | event                                                                  |
//! |-------------------|------------------------------------------------------------------------|
//! | routing key       | `<category>.<event_type>`, or `routing_key` of the outbox row          |
//! | `message_id`      | event id                                                               |
//! | `type`            | event type                                                             |
//! | `timestamp`       | `occurred_at` in whole seconds                                         |
//! | `content_type`    | `application/json`                                                     |
//! | `correlation_id`  | `metadata.correlation_id`, if it is a string of at most 255 bytes      |
//! | headers           | see [`header`]                                                         |
//! | body              | `data`, as stored                                                      |

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Datelike, SecondsFormat, SubsecRound, Timelike, Utc};
use serde_json::value::RawValue;

use crate::{
    Event, EventId, EventType, InvalidId, InvalidJson, Json, Origin, Position, SchemaVersion,
    StreamId, StreamVersion,
};

/// Names of the message headers.
pub mod header {
    use std::borrow::Cow;

    /// Text. Absent for an event without a stream. Hash exchanges distribute messages by it.
    pub const STREAM_ID: &str = "stream_id";
    /// Integer from 1. Absent for an event without a version.
    pub const STREAM_VERSION: &str = "stream_version";
    /// Integer. Absent for an event that is not in the event store.
    pub const POSITION: &str = "position";
    /// Integer from 1.
    pub const SCHEMA_VERSION: &str = "schema_version";
    /// Text: RFC 3339 in UTC with microseconds.
    pub const OCCURRED_AT: &str = "occurred_at";
    /// Text: RFC 3339 in UTC with microseconds.
    pub const RECORDED_AT: &str = "recorded_at";
    /// Text: a JSON object. Absent if empty.
    pub const METADATA: &str = "metadata";
    /// Text: `metadata.traceparent`, in the header that W3C Trace Context defines.
    pub const TRACEPARENT: &str = "traceparent";

    const ALL: [&str; 8] = [
        STREAM_ID,
        STREAM_VERSION,
        POSITION,
        SCHEMA_VERSION,
        OCCURRED_AT,
        RECORDED_AT,
        METADATA,
        TRACEPARENT,
    ];

    /// The name of a received header. One of the names above needs no allocation.
    pub fn named(name: &str) -> Cow<'static, str> {
        match ALL.iter().find(|known| **known == name) {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(name.to_owned()),
        }
    }
}

/// A message, independent of any broker library.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Determines which queues receive the message.
    pub routing_key: String,
    /// AMQP property.
    pub message_id: Option<String>,
    /// AMQP property `type`.
    pub message_type: Option<String>,
    /// AMQP property, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// AMQP property.
    pub content_type: Option<String>,
    /// AMQP property.
    pub content_encoding: Option<String>,
    /// AMQP property.
    pub correlation_id: Option<String>,
    /// AMQP headers.
    pub headers: BTreeMap<Cow<'static, str>, HeaderValue>,
    /// The body.
    pub body: Vec<u8>,
}

/// The value of a message header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// A UTF-8 string.
    Text(String),
    /// An integer of any width.
    Integer(i64),
    /// A value of any other type, which no header of an event has.
    Other,
}

/// Why a message is not an event. The text contains no part of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A property or header is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A header has another type.
    #[error("header {header} is not {expected}")]
    WrongType {
        /// The name of the header.
        header: &'static str,
        /// The expected type.
        expected: &'static str,
    },
    /// A property or header has a value that is not allowed.
    #[error("{field}: {source}")]
    Invalid {
        /// The name of the property or header.
        field: &'static str,
        /// The violated rule.
        source: InvalidId,
    },
    /// A stream version without a stream.
    #[error("header stream_version is there, but stream_id is missing")]
    VersionWithoutStream,
    /// A time that is not RFC 3339.
    #[error("header {0} is not a time in RFC 3339")]
    Time(&'static str),
    /// The content type or encoding is not that of plain JSON.
    #[error("content type is not application/json without content encoding")]
    ContentType,
    /// The body is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is not JSON.
    #[error("the body is {0}")]
    Body(InvalidJson),
    /// The metadata is not a JSON object.
    #[error("header metadata is not a JSON object")]
    Metadata,
}

const CONTENT_TYPE: &str = "application/json";
const SHORT_STRING_MAX: usize = 255;

impl Message {
    /// The message that carries an event.
    pub fn encode(event: Event, routing_key: String) -> Self {
        let mut headers = BTreeMap::new();
        let mut set = |name: &'static str, value| {
            headers.insert(Cow::Borrowed(name), value);
        };
        match event.origin {
            Origin::Stream { stream_id, version, position } => {
                set(header::STREAM_ID, HeaderValue::Text(stream_id.as_str().to_owned()));
                set(header::STREAM_VERSION, HeaderValue::Integer(version.get()));
                if let Some(position) = position {
                    set(header::POSITION, HeaderValue::Integer(position.get()));
                }
            }
            Origin::Unversioned { stream_id: Some(stream_id) } => {
                set(header::STREAM_ID, HeaderValue::Text(stream_id.as_str().to_owned()));
            }
            Origin::Unversioned { stream_id: None } => {}
        }
        set(header::SCHEMA_VERSION, HeaderValue::Integer(event.schema_version.get().into()));
        set(header::OCCURRED_AT, HeaderValue::Text(rfc3339(event.occurred_at)));
        set(header::RECORDED_AT, HeaderValue::Text(rfc3339(event.recorded_at)));

        let mut correlation_id = None;
        if event.metadata.as_str() != "{}" {
            let known = KnownMetadata::of(&event.metadata);
            correlation_id = known.correlation_id;
            if let Some(traceparent) = known.traceparent {
                set(header::TRACEPARENT, HeaderValue::Text(traceparent));
            }
            set(header::METADATA, HeaderValue::Text(event.metadata.as_str().to_owned()));
        }
        Self {
            routing_key,
            message_id: Some(event.event_id.to_string()),
            message_type: Some(event.event_type.as_str().to_owned()),
            timestamp: u64::try_from(event.occurred_at.timestamp()).ok(),
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: None,
            correlation_id,
            headers,
            body: event.data.into_bytes(),
        }
    }

    /// The event that the message carries.
    ///
    /// # Errors
    ///
    /// When [`Message::encode`] could not have produced the message. Names the first property or header
    /// that is wrong.
    pub fn decode(&self) -> Result<Event, DecodeError> {
        let id = self.message_id.as_deref().ok_or(DecodeError::Missing("message_id"))?;
        let event_id = EventId::parse(id).map_err(invalid("message_id"))?;
        let event_type = self.message_type.as_deref().ok_or(DecodeError::Missing("type"))?;
        let event_type = EventType::new(event_type).map_err(invalid("type"))?;
        if self.content_type.as_deref() != Some(CONTENT_TYPE) || self.content_encoding.is_some() {
            return Err(DecodeError::ContentType);
        }
        let origin = self.origin()?;
        let schema_version = self
            .integer(header::SCHEMA_VERSION)?
            .ok_or(DecodeError::Missing(header::SCHEMA_VERSION))?;
        let schema_version =
            SchemaVersion::new(schema_version).map_err(invalid(header::SCHEMA_VERSION))?;
        let occurred_at = self.time(header::OCCURRED_AT)?;
        let recorded_at = self.time(header::RECORDED_AT)?;
        let metadata = match self.text(header::METADATA)? {
            None => Json::empty_object(),
            Some(text) => {
                Json::parse(text).ok().filter(Json::is_object).ok_or(DecodeError::Metadata)?
            }
        };
        let body = str::from_utf8(&self.body).map_err(|_not_utf8| DecodeError::NotUtf8)?;
        let data = Json::parse(body).map_err(DecodeError::Body)?;
        Ok(Event {
            event_id,
            event_type,
            schema_version,
            origin,
            data,
            metadata,
            occurred_at,
            recorded_at,
        })
    }

    fn origin(&self) -> Result<Origin, DecodeError> {
        let stream_id = self
            .text(header::STREAM_ID)?
            .map(|text| StreamId::new(text).map_err(invalid(header::STREAM_ID)))
            .transpose()?;
        let Some(version) = self.integer(header::STREAM_VERSION)? else {
            return Ok(Origin::Unversioned { stream_id });
        };
        let version = StreamVersion::new(version).map_err(invalid(header::STREAM_VERSION))?;
        let position = self
            .integer(header::POSITION)?
            .map(|number| Position::new(number).map_err(invalid(header::POSITION)))
            .transpose()?;
        let stream_id = stream_id.ok_or(DecodeError::VersionWithoutStream)?;
        Ok(Origin::Stream { stream_id, version, position })
    }

    fn text(&self, header: &'static str) -> Result<Option<&str>, DecodeError> {
        match self.headers.get(header) {
            None => Ok(None),
            Some(HeaderValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(DecodeError::WrongType { header, expected: "text" }),
        }
    }

    fn integer(&self, header: &'static str) -> Result<Option<i64>, DecodeError> {
        match self.headers.get(header) {
            None => Ok(None),
            Some(HeaderValue::Integer(number)) => Ok(Some(*number)),
            Some(_) => Err(DecodeError::WrongType { header, expected: "an integer" }),
        }
    }

    fn time(&self, header: &'static str) -> Result<DateTime<Utc>, DecodeError> {
        let text = self.text(header)?.ok_or(DecodeError::Missing(header))?;
        DateTime::parse_from_rfc3339(text)
            .ok()
            // The databases cannot store a leap second.
            .filter(|time| time.nanosecond() < 1_000_000_000)
            .map(|time| time.to_utc().trunc_subsecs(6))
            // The offset can move the time out of the years of RFC 3339.
            .filter(|time| (0..=9999).contains(&time.year()))
            .ok_or(DecodeError::Time(header))
    }
}

fn invalid(field: &'static str) -> impl FnOnce(InvalidId) -> DecodeError {
    move |source| DecodeError::Invalid { field, source }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[derive(Default)]
struct KnownMetadata {
    correlation_id: Option<String>,
    traceparent: Option<String>,
}

impl KnownMetadata {
    fn of(metadata: &Json) -> Self {
        let Ok(fields) = serde_json::from_str::<HashMap<String, &RawValue>>(metadata.as_str())
        else {
            return Self::default();
        };
        let text = |name| {
            let text: String = serde_json::from_str(fields.get(name).copied()?.get()).ok()?;
            (text.len() <= SHORT_STRING_MAX).then_some(text)
        };
        Self { correlation_id: text("correlation_id"), traceparent: text("traceparent") }
    }
}

#[cfg(test)]
mod tests;
