//! The types of values in the table of values of a set.

use bigdecimal::BigDecimal;
use chrono::{NaiveDate, Timelike};
use serde_json::Value as Json;

use super::columns::{Column, Kind};
use projection::{Source, Value};

/// In characters. Longer texts have the type `LONGTEXT`.
const VARCHAR_MAX: u64 = 4_096;

/// The type of a column of `JSON_TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CellKind {
    Integer,
    Decimal { digits: u32, scale: u32 },
    Text { length: u64, charset: String, collation: Option<String> },
    Json,
    Date,
    Time { fraction: u32 },
}

/// The type of a parameter whose type is the same for every event.
pub(crate) fn natural(source: Source) -> Option<CellKind> {
    match source {
        Source::StreamId | Source::EventId | Source::EventType => {
            Some(CellKind::Text { length: 255, charset: "utf8mb4".to_owned(), collation: None })
        }
        Source::StreamVersion | Source::SchemaVersion | Source::Position => Some(CellKind::Integer),
        Source::OccurredAt | Source::RecordedAt => Some(CellKind::Time { fraction: 6 }),
        Source::Data | Source::Metadata => None,
    }
}

impl CellKind {
    /// The type that holds exactly the values of a table's column, and compares them in the same way.
    pub(crate) fn of(kind: &Kind) -> Option<Self> {
        Some(match kind {
            Kind::Integer { .. } => Self::Integer,
            Kind::Decimal { digits, scale } => Self::Decimal { digits: *digits, scale: *scale },
            Kind::Text { length, charset, collation, .. } => Self::Text {
                length: *length,
                charset: charset.clone(),
                collation: Some(collation.clone()),
            },
            Kind::Json => Self::Json,
            Kind::Date => Self::Date,
            Kind::Time { fraction } | Kind::Timestamp { fraction } => {
                Self::Time { fraction: *fraction }
            }
            Kind::Duration { .. }
            | Kind::Year
            | Kind::Float
            | Kind::Bit
            | Kind::Enum(_)
            | Kind::Set(_)
            | Kind::Binary { .. }
            | Kind::Other(_) => return None,
        })
    }

    /// The type for a value that is stored and not compared. The column converts it to its own character
    /// set.
    pub(crate) fn stored(self) -> Self {
        match self {
            Self::Text { length, .. } => {
                Self::Text { length, charset: "utf8mb4".to_owned(), collation: None }
            }
            other => other,
        }
    }

    pub(crate) fn sql(&self) -> String {
        match self {
            Self::Integer => "BIGINT".to_owned(),
            Self::Decimal { digits, scale } => format!("DECIMAL({digits}, {scale})"),
            Self::Text { length, charset, collation } => {
                let kind = if *length <= VARCHAR_MAX {
                    format!("VARCHAR({})", length.max(&1))
                } else {
                    "LONGTEXT".to_owned()
                };
                let collate =
                    collation.as_ref().map_or_else(String::new, |name| format!(" COLLATE {name}"));
                format!("{kind} CHARACTER SET {charset}{collate}")
            }
            Self::Json => "LONGTEXT CHARACTER SET utf8mb4".to_owned(),
            Self::Date => "DATE".to_owned(),
            Self::Time { fraction } => format!("DATETIME({fraction})"),
        }
    }

    /// The value as JSON, or `None` if this type does not hold it exactly.
    pub(crate) fn encode(&self, value: &Value) -> Option<Json> {
        match (self, value) {
            (_, Value::Null) => Some(Json::Null),
            (Self::Integer, Value::Integer(number)) => Some(Json::from(*number)),
            (Self::Integer, Value::Boolean(flag)) => Some(Json::from(u8::from(*flag))),
            (Self::Integer, Value::Decimal(number)) if number.is_integer() => {
                number.with_scale(0).to_plain_string().parse::<i64>().ok().map(Json::from)
            }
            (Self::Decimal { digits, scale }, Value::Integer(number)) => {
                decimal(&BigDecimal::from(*number), *digits, *scale)
            }
            (Self::Decimal { digits, scale }, Value::Unsigned(number)) => {
                decimal(&BigDecimal::from(*number), *digits, *scale)
            }
            (Self::Decimal { digits, scale }, Value::Decimal(number)) => {
                decimal(number, *digits, *scale)
            }
            (Self::Text { charset, .. }, Value::Text(text)) => {
                (charset == "utf8mb4" || text.is_ascii()).then(|| Json::from(&**text))
            }
            (Self::Json, Value::Json(text)) => Some(Json::from(&**text)),
            (Self::Date, Value::Text(text)) => is_date(text).then(|| Json::from(&**text)),
            (Self::Time { fraction }, Value::Time(time)) => {
                let text = time.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
                let unit = 10_u32.pow(9 - fraction.min(&6));
                // MySQL's years have four digits. Other years give a text of another length.
                let fits = text.len() == 26 && time.nanosecond().is_multiple_of(unit);
                fits.then(|| Json::from(text))
            }
            _ => None,
        }
    }
}

/// The number as text, if `DECIMAL(digits, scale)` holds it exactly.
fn decimal(number: &BigDecimal, digits: u32, scale: u32) -> Option<Json> {
    let number = number.normalized();
    let plain = number.to_plain_string();
    let unsigned = plain.trim_start_matches('-');
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let whole = whole.trim_start_matches('0');
    let fits = fraction.len() <= scale as usize && whole.len() <= (digits - scale) as usize;
    fits.then(|| Json::from(plain))
}

fn is_date(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// Whether a column certainly accepts a value that was encoded for it. Only then can a merge omit a value
/// that a later event overwrites.
pub(crate) fn is_storable(column: &Column, value: &Json) -> bool {
    match (&column.kind, value) {
        (_, Json::Null) => column.is_nullable,
        (Kind::Integer { min, max }, Json::Number(number)) => {
            number.as_i64().is_some_and(|number| (*min..=*max).contains(&i128::from(number)))
        }
        (Kind::Text { length, charset, .. }, Json::String(text)) => {
            // The length of TEXT is in bytes. For other types this is stricter than necessary.
            text.len() as u64 <= *length && (charset == "utf8mb4" || text.is_ascii())
        }
        (Kind::Date, Json::String(text)) => NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok(),
        // `encode` has already checked every digit.
        (Kind::Decimal { .. } | Kind::Time { .. }, Json::String(_)) => true,
        _ => false,
    }
}
