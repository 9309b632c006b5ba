//! Times in ISO 8601, such as `2026-01-31T12:00:00.000Z` or `2026-01-31 13:00:00+0100`.

use chrono::{NaiveDate, NaiveDateTime, SubsecRound, TimeDelta, Timelike};
use projection::Value;

/// A time that a text expresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instant {
    /// In UTC. A text without a time zone is in UTC. Digits behind the nanosecond only make the last digit
    /// odd.
    time: NaiveDateTime,
    /// Whether the text has a time zone.
    pub(super) has_zone: bool,
    /// Whether the text has a time of day.
    pub(super) has_time_of_day: bool,
}

impl Instant {
    /// Reads a date with or without a time of day; `None` if it is not a time, or not in the years 0 to 9999.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut rest = Rest(text.as_bytes());
        let year = rest.number(4)?;
        rest.one_of(b"-")?;
        let month = rest.number(2)?;
        rest.one_of(b"-")?;
        let date = NaiveDate::from_ymd_opt(year.try_into().ok()?, month, rest.number(2)?)?;
        if rest.0.is_empty() {
            let time = date.and_hms_opt(0, 0, 0)?;
            return Some(Self { time, has_zone: false, has_time_of_day: false });
        }
        rest.one_of(b"Tt ")?;
        let hour = rest.number(2)?;
        rest.one_of(b":")?;
        let minute = rest.number(2)?;
        let (mut second, mut nanos) = (0, 0);
        if rest.one_of(b":").is_some() {
            second = rest.number(2)?;
            if rest.one_of(b".,").is_some() {
                nanos = rest.fraction()?;
            }
        }
        let local = date.and_hms_nano_opt(hour, minute, second, nanos)?;
        let has_zone = !rest.0.is_empty();
        let time = local.checked_sub_signed(rest.zone()?)?;
        let in_range = (0..=9999).contains(&chrono::Datelike::year(&time));
        in_range.then_some(Self { time, has_zone, has_time_of_day: true })
    }

    /// The time in microseconds, and whether it has no more than `digits` digits of a second.
    pub(super) fn rounded(self, digits: u32) -> (NaiveDateTime, bool) {
        let unit = 10_u32.pow(9 - digits.min(6));
        (self.time.round_subsecs(6), self.time.nanosecond().is_multiple_of(unit))
    }

    /// The date, or `None` if the time is not midnight.
    pub(super) fn date(self) -> Option<NaiveDate> {
        (self.time.num_seconds_from_midnight() == 0 && self.time.nanosecond() == 0)
            .then(|| self.time.date())
    }
}

/// Converts a text with a time zone to a time. MySQL understands `+00:00`, but neither `Z` nor `+0000`.
pub(super) fn zoned(value: Value) -> Value {
    match &value {
        Value::Text(text) => match Instant::parse(text).filter(|instant| instant.has_zone) {
            Some(instant) => Value::Time(instant.rounded(6).0),
            None => value,
        },
        _ => value,
    }
}

/// The bytes that have not been read yet.
struct Rest<'t>(&'t [u8]);

impl Rest<'_> {
    /// Reads exactly `count` digits.
    fn number(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        let digit = |number: u32, byte: &u8| {
            byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0'))
        };
        digits.iter().try_fold(0, digit)
    }

    /// Reads one of these bytes.
    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        bytes.contains(first).then(|| self.0 = rest)?;
        Some(*first)
    }

    /// Reads the digits behind the point, as nanoseconds.
    fn fraction(&mut self) -> Option<u32> {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        let (nanos, beyond) = digits.split_at(count.min(9));
        let read = Rest(nanos).number(nanos.len()).filter(|_| count > 0)?;
        let nanos = read * 10_u32.pow(9 - u32::try_from(nanos.len()).ok()?);
        Some(nanos | u32::from(beyond.iter().any(|digit| *digit != b'0')))
    }

    /// Reads the time zone up to the end: nothing, `Z`, `+01:00`, `+0100` or `+01`.
    fn zone(&mut self) -> Option<TimeDelta> {
        let minutes = match self.one_of(b"Zz+-") {
            None | Some(b'Z' | b'z') => 0,
            Some(sign) => {
                let hours = self.number(2)?;
                self.one_of(b":");
                let minutes = if self.0.is_empty() { 0 } else { self.number(2)? };
                (hours < 24 && minutes < 60).then_some(())?;
                let offset = i64::from(hours * 60 + minutes);
                if sign == b'-' { -offset } else { offset }
            }
        };
        self.0.is_empty().then(|| TimeDelta::minutes(minutes))
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, FixedOffset, SecondsFormat, TimeZone};
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<String> {
        Instant::parse(text).map(|it| it.time.format("%Y-%m-%d %H:%M:%S%.9f").to_string())
    }

    #[test]
    fn every_notation_of_a_time_is_read() {
        for (text, expected) in [
            ("2026-01-31T12:00:00Z", "2026-01-31 12:00:00.000000000"),
            ("2026-01-31T12:00:00.000Z", "2026-01-31 12:00:00.000000000"),
            ("2026-01-31T12:00:00.25+0000", "2026-01-31 12:00:00.250000000"),
            ("2026-01-31T12:00:00+00:00", "2026-01-31 12:00:00.000000000"),
            ("2026-01-31T00:30:00+01:00", "2026-01-30 23:30:00.000000000"),
            ("2026-01-31 00:30-09", "2026-01-31 09:30:00.000000000"),
            ("2026-01-31T12:00:00,1234567Z", "2026-01-31 12:00:00.123456700"),
            ("2026-01-31T12:00:00.0000000001Z", "2026-01-31 12:00:00.000000001"),
            ("2026-01-31", "2026-01-31 00:00:00.000000000"),
            ("2024-02-29t23:59:59z", "2024-02-29 23:59:59.000000000"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_time_is_not_read() {
        for text in [
            "",
            "soon",
            "10:11:12",
            "20260131",
            "2026-1-31",
            "2026-02-30",
            "2026-01-31T",
            "2026-01-31T12",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:60Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31Z",
            "2026-01-31T12:00:00ZZ",
            "2026-01-31T12:00:00 Z",
            " 2026-01-31",
            "2026-01-31 ",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00+1:00",
            "0000-01-01T00:00:00+01:00",
            "9999-12-31T23:30:00-01:00",
            "２026-01-31",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_in_any_zone_is_read_exactly(
            seconds in -60_000_000_000_i64..250_000_000_000, micros in 0_u32..1_000_000,
            offset in -840_i32..840,
        ) {
            let zone = FixedOffset::east_opt(offset * 60).unwrap();
            let time = DateTime::from_timestamp(seconds, micros * 1_000).unwrap();
            let text = zone.from_utc_datetime(&time.naive_utc()).to_rfc3339_opts(SecondsFormat::Micros, true);
            let read = Instant::parse(&text).unwrap();
            prop_assert_eq!(read.rounded(6), (time.naive_utc(), true));
            prop_assert!(read.has_zone);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9TZ:+. -]{0,40}|\\PC{0,20}") {
            let _ = Instant::parse(&text);
        }
    }
}
