//! Converts values to the types of columns.

use std::str::FromStr;

use bigdecimal::BigDecimal;
use projection::Value;

use super::time::Instant;
use crate::batching::{Kind, TextType};

/// Why a column would change a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("is a boolean, and its column has another type")]
    Boolean,
    #[error("is an object or array, and its column has another type than JSON")]
    Document,
    #[error("is a number, and its column has another type")]
    Number,
    #[error("is text, and its column has another type")]
    Text,
    #[error("is text and not a plain number")]
    NotNumber,
    #[error("has more digits behind the point than its column")]
    Digits,
    #[error("ends in spaces that its column does not keep")]
    Spaces,
    #[error("is not a time such as 2026-01-31T12:00:00Z")]
    NotTime,
    #[error("has more digits of a second than its column")]
    Seconds,
    #[error("has a time of day, and its column is a DATE")]
    TimeOfDay,
    #[error("is not a time such as 12:00:00")]
    NotDuration,
    #[error("is not a year of four digits")]
    NotYear,
    #[error("is not one of the values of its column")]
    NotMember,
    #[error("is shorter than its BINARY column")]
    Short,
}

/// The most digits of a number that MySQL holds exactly: those of a `DECIMAL`.
const DIGITS_MAX: usize = 65;
/// The greatest number of hours of a `TIME`.
const HOURS_MAX: u32 = 838;

/// The value for a column that stores it. If the column would change it, the value that is nearest to what
/// MySQL understands, and the reason.
pub(super) fn stored(value: Value, kind: &Kind) -> Result<Value, (Value, Misfit)> {
    match kind {
        Kind::Integer { .. } => numeric(value, 0, true),
        Kind::Decimal { scale, .. } => numeric(value, i64::from(*scale), false),
        // The value of a FLOAT or DOUBLE is approximate by definition.
        Kind::Float => numeric(value, i64::MAX, false),
        Kind::Text { length, is, .. } => text(value, *is, *length),
        Kind::Json => Ok(json(value)),
        Kind::Date => date(value),
        Kind::Time { fraction } | Kind::Timestamp { fraction } => time(value, *fraction),
        Kind::Duration { fraction } => {
            keep_text(value, Misfit::NotDuration, |text| is_duration(text, *fraction))
        }
        Kind::Year => year(value),
        Kind::Enum(members) => {
            keep_text(value, Misfit::NotMember, |text| members.iter().any(|member| member == text))
        }
        Kind::Set(members) => keep_text(value, Misfit::NotMember, |text| {
            text.is_empty()
                || text.split(',').all(|part| members.iter().any(|member| member == part))
        }),
        Kind::Bit => match value {
            Value::Text(_) => Err((value, Misfit::Text)),
            other => numeric(other, 0, true),
        },
        Kind::Binary { length } => binary(value, *length),
        Kind::Other(_) => Ok(value),
    }
}

/// The value for a column that stores it under a condition, such as a first argument of NULLIF. It stays text,
/// because the condition may compare it with text, and it may be one that the condition excludes.
pub(super) fn chosen(value: Value, kind: &Kind) -> Value {
    match kind {
        Kind::Json => json(value),
        Kind::Date | Kind::Time { .. } | Kind::Timestamp { .. } => {
            match super::time::zoned(value) {
                Value::Time(time) => Value::Text(time.format("%Y-%m-%d %H:%M:%S%.6f").to_string()),
                other => other,
            }
        }
        _ => value,
    }
}

/// The value for a comparison with a column. MySQL would compare a text with a number as floats, and a
/// number with a text likewise.
pub(super) fn compared(value: Value, kind: &Kind) -> Value {
    match (kind, &value) {
        (Kind::Integer { .. } | Kind::Decimal { .. } | Kind::Float, _) => number(value),
        (Kind::Text { .. }, _) => written(value),
        (Kind::Date | Kind::Time { .. } | Kind::Timestamp { .. }, Value::Text(text)) => {
            match Instant::parse(text).filter(|instant| instant.has_time_of_day) {
                Some(instant) => Value::Time(instant.rounded(6).0),
                None => value,
            }
        }
        _ => value,
    }
}

/// Converts a text that is a plain number.
pub(super) fn number(value: Value) -> Value {
    let Value::Text(text) = &value else { return value };
    if !is_plain_number(text) {
        return value;
    }
    let integer = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Unsigned));
    integer.ok().or_else(|| Some(Value::Decimal(BigDecimal::from_str(text).ok()?))).unwrap_or(value)
}

/// Converts a value to JSON text. A column parses a text that is bound as it is, and "1" would become a
/// number.
pub(super) fn json(value: Value) -> Value {
    Value::Json(match value {
        Value::Null | Value::Json(_) => return value,
        Value::Boolean(flag) => flag.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Unsigned(number) => number.to_string(),
        Value::Decimal(number) => number.to_plain_string(),
        Value::Text(text) => serde_json::Value::from(text).to_string(),
        Value::Time(time) => format!("\"{}\"", time.format("%Y-%m-%d %H:%M:%S%.6f")),
    })
}

/// Converts a number to text.
fn written(value: Value) -> Value {
    match value {
        Value::Integer(number) => Value::Text(number.to_string()),
        Value::Unsigned(number) => Value::Text(number.to_string()),
        Value::Decimal(number) => Value::Text(number.to_plain_string()),
        other => other,
    }
}

fn numeric(value: Value, scale: i64, has_booleans: bool) -> Result<Value, (Value, Misfit)> {
    let value = number(value);
    let misfit = match &value {
        Value::Boolean(_) if !has_booleans => Misfit::Boolean,
        Value::Decimal(number) if number.normalized().fractional_digit_count() > scale => {
            Misfit::Digits
        }
        // MySQL refuses any other text.
        Value::Text(text) if text.bytes().all(is_of_numbers) => Misfit::NotNumber,
        Value::Json(_) => Misfit::Document,
        Value::Time(_) => Misfit::Number,
        _ => return Ok(value),
    };
    Err((value, misfit))
}

fn text(value: Value, is: TextType, length: u64) -> Result<Value, (Value, Misfit)> {
    let misfit = match &value {
        Value::Boolean(_) => Misfit::Boolean,
        Value::Json(_) => Misfit::Document,
        // MySQL cuts spaces off where it would refuse any other character.
        Value::Text(text)
            if text.ends_with(' ')
                && match is {
                    TextType::Char => true,
                    TextType::Varchar => text.chars().count() as u64 > length,
                    TextType::Text => text.len() as u64 > length,
                } =>
        {
            Misfit::Spaces
        }
        _ => return Ok(written(value)),
    };
    Err((value, misfit))
}

fn binary(value: Value, length: Option<u64>) -> Result<Value, (Value, Misfit)> {
    match &value {
        Value::Boolean(_) => Err((value, Misfit::Boolean)),
        Value::Json(_) => Err((value, Misfit::Document)),
        // MySQL fills a BINARY column with zeros.
        Value::Text(text) if length.is_some_and(|length| (text.len() as u64) < length) => {
            Err((value, Misfit::Short))
        }
        _ => Ok(value),
    }
}

fn date(value: Value) -> Result<Value, (Value, Misfit)> {
    let Value::Text(text) = &value else { return typed(value) };
    match Instant::parse(text).map(|instant| (instant, instant.date())) {
        Some((_, Some(date))) => Ok(Value::Text(date.format("%Y-%m-%d").to_string())),
        Some((instant, None)) => Err((Value::Time(instant.rounded(6).0), Misfit::TimeOfDay)),
        None => Err((value, Misfit::NotTime)),
    }
}

fn time(value: Value, fraction: u32) -> Result<Value, (Value, Misfit)> {
    let Value::Text(text) = &value else { return typed(value) };
    match Instant::parse(text).map(|instant| instant.rounded(fraction)) {
        Some((time, true)) => Ok(Value::Time(time)),
        Some((time, false)) => Err((Value::Time(time), Misfit::Seconds)),
        None => Err((value, Misfit::NotTime)),
    }
}

fn year(value: Value) -> Result<Value, (Value, Misfit)> {
    let value = number(value);
    match value {
        Value::Integer(1_901..=2_155) => Ok(value),
        other => Err((other, Misfit::NotYear)),
    }
}

/// Keeps a text that fits.
fn keep_text(
    value: Value,
    misfit: Misfit,
    fits: impl Fn(&str) -> bool,
) -> Result<Value, (Value, Misfit)> {
    let Value::Text(text) = &value else { return typed(value) };
    if fits(text) { Ok(value) } else { Err((value, misfit)) }
}

/// Refuses a value that is no text.
fn typed(value: Value) -> Result<Value, (Value, Misfit)> {
    let misfit = match &value {
        Value::Boolean(_) => Misfit::Boolean,
        Value::Json(_) => Misfit::Document,
        Value::Integer(_) | Value::Unsigned(_) | Value::Decimal(_) => Misfit::Number,
        Value::Null | Value::Text(_) | Value::Time(_) => return Ok(value),
    };
    Err((value, misfit))
}

/// Digits with or without sign and fraction, and no more than a `DECIMAL` holds.
fn is_plain_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole) && digits(fraction) && whole.len() + fraction.len() <= DIGITS_MAX
}

/// Whether a byte can be part of a text that MySQL reads as a number.
fn is_of_numbers(byte: u8) -> bool {
    byte.is_ascii_digit() || byte.is_ascii_whitespace() || b"+-.eE".contains(&byte)
}

/// Whether a text is hours, minutes and seconds that a `TIME` with so many digits of a second keeps.
fn is_duration(text: &str, fraction: u32) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (time, digits) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let number = |part: &str| {
        let plain = (2..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| part.parse::<u32>().ok()).flatten()
    };
    let parts: Option<Vec<u32>> = time.split(':').map(number).collect();
    let kept = digits.trim_end_matches('0').len() <= fraction as usize;
    let is_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let fits = |parts: Vec<u32>| match parts[..] {
        [hours, minutes, seconds] => hours <= HOURS_MAX && minutes < 60 && seconds < 60,
        _ => false,
    };
    kept && is_digits && parts.is_some_and(fits)
}
