//! The values that are bound to placeholders.

use std::str::FromStr;

use bigdecimal::BigDecimal;
use chrono::NaiveDateTime;

/// A value that MySQL accepts as a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `NULL`
    Null,
    /// A JSON boolean, which MySQL stores as 0 or 1.
    Boolean(bool),
    /// A JSON number without fraction or exponent, up to 2^63 - 1.
    Integer(i64),
    /// A JSON number without fraction or exponent, above 2^63 - 1.
    Unsigned(u64),
    /// Any other JSON number. Its digits are exact: it is never a float.
    Decimal(BigDecimal),
    /// A JSON string.
    Text(String),
    /// A JSON object or array, as JSON text.
    Json(String),
    /// A time in UTC, in microseconds.
    Time(NaiveDateTime),
}

/// A JSON value that has no counterpart in MySQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotBindable {
    /// The number has more than the 65 digits of a `DECIMAL`.
    #[error("is a number with more than 65 digits, which MySQL cannot hold")]
    NumberTooLong,
    /// The text is not JSON. Only a message from another publisher than the relay can contain it.
    #[error("is not valid JSON")]
    NotJson,
}

/// The most digits of a `DECIMAL`, from the MySQL 8.4 Reference Manual, section "Fixed-Point Types".
const DECIMAL_DIGITS: usize = 65;

impl Value {
    /// A letter for the type. `Text` and `Json` share one, because both are bound as strings.
    pub fn letter(&self) -> char {
        match self {
            Self::Null => 'n',
            Self::Boolean(_) => 'b',
            Self::Integer(_) => 'i',
            Self::Unsigned(_) => 'u',
            Self::Decimal(_) => 'd',
            Self::Text(_) | Self::Json(_) => 's',
            Self::Time(_) => 't',
        }
    }

    /// Converts one JSON value.
    pub(crate) fn of_json(json: &str) -> Result<Self, NotBindable> {
        let json = json.trim();
        Ok(match json.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Boolean(true),
            Some(b'f') => Self::Boolean(false),
            Some(b'"') => {
                Self::Text(serde_json::from_str(json).map_err(|_quotes| NotBindable::NotJson)?)
            }
            Some(b'{' | b'[') => Self::Json(json.to_owned()),
            _ => return number(json),
        })
    }
}

fn number(json: &str) -> Result<Value, NotBindable> {
    if let Ok(number) = json.parse() {
        return Ok(Value::Integer(number));
    }
    if let Ok(number) = json.parse() {
        return Ok(Value::Unsigned(number));
    }
    // Checked before conversion: 1e999999999 would expand to a billion digits.
    let digits = json.bytes().take_while(|byte| !matches!(byte, b'e' | b'E')).count();
    let exponent = json.split_once(['e', 'E']).map_or(Ok(0), |(_, text)| i64::from_str(text));
    let small = exponent.is_ok_and(|exponent| exponent.unsigned_abs() <= DECIMAL_DIGITS as u64);
    if digits > 2 * DECIMAL_DIGITS || !small {
        return Err(NotBindable::NumberTooLong);
    }
    let number = BigDecimal::from_str(json).map_err(|_malformed| NotBindable::NotJson)?;
    let plain = number.to_plain_string();
    if plain.bytes().filter(u8::is_ascii_digit).count() > DECIMAL_DIGITS {
        return Err(NotBindable::NumberTooLong);
    }
    // The driver writes a number with an exponent unless its scale is that of its plain notation.
    let scale = plain.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    Ok(Value::Decimal(number.with_scale(i64::try_from(scale).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_keep_every_digit() {
        let text = |json| match Value::of_json(json).unwrap() {
            Value::Integer(number) => format!("integer {number}"),
            Value::Unsigned(number) => format!("unsigned {number}"),
            Value::Decimal(number) => format!("decimal {}", number.to_plain_string()),
            other => format!("{other:?}"),
        };
        for (json, expected) in [
            ("0", "integer 0"),
            ("-0", "integer 0"),
            ("9223372036854775807", "integer 9223372036854775807"),
            ("9223372036854775808", "unsigned 9223372036854775808"),
            ("12345678901234567890123", "decimal 12345678901234567890123"),
            ("19.90", "decimal 19.90"),
            ("-0.1", "decimal -0.1"),
            ("0.000000001", "decimal 0.000000001"),
            ("1e3", "decimal 1000"),
            ("1.5e-3", "decimal 0.0015"),
        ] {
            assert_eq!(text(json), expected, "{json}");
        }
    }

    #[test]
    fn a_number_that_is_too_long_for_mysql_is_refused() {
        let long = "1".repeat(66);
        for json in ["1e400", "1e-400", "1e999999999999999999999", &long, "1e65"] {
            assert_eq!(Value::of_json(json), Err(NotBindable::NumberTooLong), "{json}");
        }
        assert!(Value::of_json(&"9".repeat(65)).is_ok());
    }

    proptest! {
        #[test]
        fn a_decimal_keeps_the_digits_of_the_payload(
            whole in "(0|[1-9][0-9]{0,30})", fraction in "[0-9]{1,30}", negative in any::<bool>(),
        ) {
            let nothing = whole == "0" && fraction.bytes().all(|digit| digit == b'0');
            let sign = if negative && !nothing { "-" } else { "" };
            let json = format!("{sign}{whole}.{fraction}");
            let Ok(Value::Decimal(number)) = Value::of_json(&json) else { panic!("{json}") };
            prop_assert_eq!(number.to_plain_string(), json);
        }

        #[test]
        fn a_string_keeps_every_character(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(Value::of_json(&json), Ok(Value::Text(text)));
        }
    }
}
