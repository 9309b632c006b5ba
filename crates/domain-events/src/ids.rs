//! Identifiers. Each has its own type, so that none can be mistaken for another.

use std::fmt;

use uuid::Uuid;

/// Why a value is not a valid identifier.
///
/// The text does not contain the value, which may come from a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// See [`EventId`].
    #[error("an event id must be a UUID that is not nil")]
    EventId,
    /// See [`StreamId`].
    #[error(
        "a stream id must be '<category>-<id>', 1 to 255 bytes, without control characters, its \
         category without space, '.', '*' or '#'"
    )]
    StreamId,
    /// See [`Category`].
    #[error(
        "a category must be 1 to 255 bytes without space, control character, '-', '.', '*' or '#'"
    )]
    Category,
    /// See [`EventType`].
    #[error(
        "an event type must be 1 to 127 bytes without space, control character, '/', '*' or '#', \
         and not start with '.'"
    )]
    EventType,
    /// See [`StreamVersion`].
    #[error("a stream version must be an integer from 1 to 2^63 - 1")]
    StreamVersion,
    /// See [`Position`].
    #[error("a position must be an integer from 0 to 2^63 - 1")]
    Position,
    /// See [`SchemaVersion`].
    #[error("a schema version must be an integer from 1 to 2^31 - 1")]
    SchemaVersion,
}

/// The permanent identifier of an event, by which repeated messages are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Uuid);

impl EventId {
    /// # Errors
    ///
    /// When the UUID is nil, which many clients use for "no id".
    pub fn new(id: Uuid) -> Result<Self, InvalidId> {
        if id.is_nil() { Err(InvalidId::EventId) } else { Ok(Self(id)) }
    }

    /// Parses a UUID.
    ///
    /// # Errors
    ///
    /// When the text is not a UUID, or the nil UUID.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        Uuid::try_parse(text).map_err(|_malformed| InvalidId::EventId).and_then(Self::new)
    }

    /// The UUID.
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The name of a stream, which contains the events of one thing, for example of one order.
///
/// Has the form `<category>-<id>`. A constraint in `migrations/postgres` enforces the same rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(Box<str>);

impl StreamId {
    /// # Errors
    ///
    /// When the text violates the rule in the error's message.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, InvalidId> {
        let text = text.into();
        let category = text.split('-').next().unwrap_or_default();
        let valid = text.len() <= 255 && is_category(category) && !text.contains(is_control);
        if valid { Ok(Self(text)) } else { Err(InvalidId::StreamId) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first `-`, as in Kurrent and message-db.
    pub fn category(&self) -> &str {
        self.0.split('-').next().unwrap_or_default()
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of a stream, for example `order`. The first word of the routing keys of its events.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Category(Box<str>);

impl Category {
    /// # Errors
    ///
    /// When the text violates the rule in the error's message.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, InvalidId> {
        let text = text.into();
        let valid = text.len() <= 255 && is_category(&text);
        if valid { Ok(Self(text)) } else { Err(InvalidId::Category) }
    }

    /// The category as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The type of an event, for example `OrderPlaced`. The rest of its routing key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(Box<str>);

impl EventType {
    /// # Errors
    ///
    /// When the text violates the rule in the error's message.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, InvalidId> {
        let text = text.into();
        let valid = (1..=127).contains(&text.len())
            && !text.starts_with('.')
            && !text.contains(|c| is_control(c) || matches!(c, ' ' | '/' | '*' | '#'));
        if valid { Ok(Self(text)) } else { Err(InvalidId::EventType) }
    }

    /// The type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_category(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(|c| is_control(c) || matches!(c, ' ' | '-' | '.' | '*' | '#'))
}

/// ASCII only, like the constraints in PostgreSQL, which use `COLLATE "C"`.
fn is_control(c: char) -> bool {
    c.is_ascii_control()
}

macro_rules! integer_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), from $lowest:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// # Errors
            ///
            /// When the number is out of range.
            pub fn new(number: i64) -> Result<Self, InvalidId> {
                match <$inner>::try_from(number) {
                    Ok(number) if number >= $lowest => Ok(Self(number)),
                    _ => Err(InvalidId::$name),
                }
            }

            /// The number.
            pub fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

integer_id! {
    /// The number of an event in its stream, from 1 without gaps.
    StreamVersion(i64), from 1
}

integer_id! {
    /// The place of an event in the global order of the event store. Positions increase, with gaps; 0 is
    /// before the first event.
    Position(i64), from 0
}

integer_id! {
    /// The version of the schema of an event type's payload, from 1.
    SchemaVersion(i32), from 1
}

impl StreamVersion {
    /// The version of a stream's first event.
    pub const FIRST: Self = Self(1);
    /// The highest version, which no stream reaches.
    pub const LAST: Self = Self(i64::MAX);

    /// The next version.
    ///
    /// # Panics
    ///
    /// After 2^63 - 1 events in one stream.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a stream has fewer than 2^63 events"))
    }
}

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);
}

impl SchemaVersion {
    /// The version of a schema that has never changed.
    pub const FIRST: Self = Self(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_id_is_a_category_and_an_id() {
        for (text, category) in [
            ("order-1234", "order"),
            ("order-12-34", "order"),
            ("order-", "order"),
            ("settings", "settings"),
            ("bestellung-Zoë Müller", "bestellung"),
        ] {
            assert_eq!(StreamId::new(text).unwrap().category(), category, "{text}");
        }
        let long = format!("order-{}", "x".repeat(250));
        for text in ["", "-1", "a.b-1", "a b-1", "a*-1", "a#-1", "order-\n", "order-\u{0}", &long] {
            assert_eq!(StreamId::new(text), Err(InvalidId::StreamId), "{text:?}");
        }
    }

    #[test]
    fn an_event_type_is_a_file_name_and_words_of_a_routing_key() {
        for text in ["OrderPlaced", "order.placed.v1", "App\\Events\\OrderPlaced", "ß"] {
            assert!(EventType::new(text).is_ok(), "{text}");
        }
        let long = "x".repeat(128);
        for text in ["", ".", "..", ".hidden", "a/b", "a b", "a*", "#", "a\tb", &long] {
            assert_eq!(EventType::new(text), Err(InvalidId::EventType), "{text:?}");
        }
    }

    #[test]
    fn numbers_have_their_ranges() {
        assert_eq!(StreamVersion::new(0), Err(InvalidId::StreamVersion));
        assert_eq!(StreamVersion::new(i64::MAX).unwrap().get(), i64::MAX);
        assert_eq!(Position::new(-1), Err(InvalidId::Position));
        assert_eq!(SchemaVersion::new(i64::from(i32::MAX) + 1), Err(InvalidId::SchemaVersion));
        assert_eq!(EventId::new(Uuid::nil()), Err(InvalidId::EventId));
        assert_eq!(EventId::parse("not a uuid"), Err(InvalidId::EventId));
    }
}
