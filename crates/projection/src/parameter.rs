//! Named parameters, such as `:stream_id` or `:data.customer.name`: each names a part of an event.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;

use domain_events::{Json, StoredEvent};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::Value;
use crate::value::NotBindable;

/// The name of a part of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The field of the event that the name begins with.
    pub source: Source,
    pub(crate) path: Vec<Step>,
    optional: bool,
}

/// The field of an event that a parameter begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `:stream_id`
    StreamId,
    /// `:stream_version`
    StreamVersion,
    /// `:event_id`
    EventId,
    /// `:event_type`
    EventType,
    /// `:schema_version`
    SchemaVersion,
    /// `:position`
    Position,
    /// `:occurred_at`
    OccurredAt,
    /// `:recorded_at`
    RecordedAt,
    /// `:data`, or a part such as `:data.lines[0]`.
    Data,
    /// `:metadata`, or a part of it.
    Metadata,
}

/// One step into a JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Index(usize),
}

/// An event lacks the part that a parameter names, or the part has a value that MySQL cannot hold.
///
/// The message contains the parameter, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The event has no such part.
    #[error("the event has no {parameter}; write {parameter}? to use NULL instead")]
    Missing {
        /// The parameter, as written.
        parameter: String,
    },
    /// The value has no SQL counterpart.
    #[error("{parameter} {reason}")]
    NotBindable {
        /// The parameter, as written.
        parameter: String,
        /// The reason.
        reason: NotBindable,
    },
}

const SOURCES: [(&str, Source); 10] = [
    ("stream_id", Source::StreamId),
    ("stream_version", Source::StreamVersion),
    ("event_id", Source::EventId),
    ("event_type", Source::EventType),
    ("schema_version", Source::SchemaVersion),
    ("position", Source::Position),
    ("occurred_at", Source::OccurredAt),
    ("recorded_at", Source::RecordedAt),
    ("data", Source::Data),
    ("metadata", Source::Metadata),
];

impl Source {
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        SOURCES.iter().find(|(known, _)| *known == name).map(|(_, source)| *source).ok_or_else(
            || {
                let known: Vec<_> = SOURCES.iter().map(|(name, _)| format!(":{name}")).collect();
                format!("unknown parameter :{name}; the parameters are {}", known.join(", "))
            },
        )
    }
}

impl Parameter {
    pub(crate) fn new(source: Source, path: Vec<Step>, optional: bool) -> Result<Self, String> {
        let parameter = Self { source, path, optional };
        let has_parts = matches!(source, Source::Data | Source::Metadata);
        if !has_parts && (!parameter.path.is_empty() || optional) {
            return Err(format!(
                "only :data and :metadata have parts, so {parameter} does not exist"
            ));
        }
        if has_parts && parameter.path.is_empty() && optional {
            return Err(format!(
                "every event has this field: write {parameter} without the question mark"
            ));
        }
        Ok(parameter)
    }

    /// The value of this part in an event.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn value(&self, event: &StoredEvent) -> Result<Value, BindError> {
        Ok(match self.source {
            Source::StreamId => Value::Text(event.stream_id.as_str().to_owned()),
            Source::StreamVersion => Value::Integer(event.version.get()),
            Source::EventId => Value::Text(event.event_id.to_string()),
            Source::EventType => Value::Text(event.event_type.as_str().to_owned()),
            Source::SchemaVersion => Value::Integer(event.schema_version.get().into()),
            Source::Position => Value::Integer(event.position.get()),
            Source::OccurredAt => Value::Time(event.occurred_at.naive_utc()),
            Source::RecordedAt => Value::Time(event.recorded_at.naive_utc()),
            Source::Data => self.part(&event.data)?,
            Source::Metadata => self.part(&event.metadata)?,
        })
    }

    fn part(&self, document: &Json) -> Result<Value, BindError> {
        let parameter = || self.to_string();
        match find(document.as_str(), &self.path) {
            Some(json) => Value::of_json(json)
                .map_err(|reason| BindError::NotBindable { parameter: parameter(), reason }),
            None if self.optional => Ok(Value::Null),
            None => Err(BindError::Missing { parameter: parameter() }),
        }
    }
}

/// Finds a part of a JSON text. It parses no values on the way, so numbers keep their digits.
fn find<'j>(json: &'j str, path: &[Step]) -> Option<&'j str> {
    let Some((step, rest)) = path.split_first() else { return Some(json) };
    let part = match step {
        // The last of two equal keys counts, as in PostgreSQL's jsonb.
        Step::Field(name) => {
            let members: HashMap<Key, &RawValue> = serde_json::from_str(json).ok()?;
            members.get(name.as_bytes()).copied()?
        }
        Step::Index(index) => {
            serde_json::from_str::<Vec<&RawValue>>(json).ok()?.get(*index).copied()?
        }
    };
    find(part.get(), rest)
}

/// Whether a name needs no backticks.
fn is_plain(name: &str) -> bool {
    let is_letter =
        |c: char| c.is_ascii_alphabetic() || c == '_' || ('\u{80}'..='\u{ffff}').contains(&c);
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

/// The key of an object member, as bytes.
///
/// A JSON string may contain half a surrogate pair, which UTF-8 cannot express. A key of type `String`
/// would fail to parse then, and hide the other members of the object.
#[derive(PartialEq, Eq, Hash)]
struct Key(Vec<u8>);

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Key, E> {
                Ok(Key(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SOURCES.iter().find(|(_, source)| *source == self.source);
        write!(f, ":{}", name.map_or("", |(name, _)| name))?;
        for step in &self.path {
            match step {
                Step::Field(name) if is_plain(name) => write!(f, ".{name}")?,
                Step::Field(name) => write!(f, ".`{}`", name.replace('`', "``"))?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        if self.optional { f.write_str("?") } else { Ok(()) }
    }
}
