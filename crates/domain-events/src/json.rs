//! JSON kept as text.

use std::fmt;

use serde_json::value::RawValue;

/// The text is not JSON.
///
/// Gives the place of the error, but no part of the text, which may be confidential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not valid JSON at line {line}, column {column}")]
pub struct InvalidJson {
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for InvalidJson {
    fn from(error: serde_json::Error) -> Self {
        Self { line: error.line(), column: error.column() }
    }
}

/// A well-formed JSON value, as the text that was stored.
///
/// It is kept as text so that `19.90`, integers above 2^53 and the order of keys do not change. `Debug`
/// shows only its length, so that no payload reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// Checks that a text is JSON.
    ///
    /// # Errors
    ///
    /// When the text is not exactly one JSON value.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, InvalidJson> {
        let text = text.into();
        serde_json::from_str::<&RawValue>(&text)?;
        Ok(Self(text))
    }

    /// Takes a text from a column of type `json` or `jsonb`, which the database has checked.
    pub fn from_database(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The empty object.
    pub fn empty_object() -> Self {
        Self("{}".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Converts the text to bytes, without copying it.
    pub fn into_bytes(self) -> Vec<u8> {
        String::from(self.0).into_bytes()
    }

    /// Whether this is an object, not an array or a scalar.
    pub fn is_object(&self) -> bool {
        self.0.trim_start().starts_with('{')
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_changed() {
        for text in ["19.90", "12345678901234567890123", "1e400", r#"{"b":1,"a":2}"#, "null", " 1 "]
        {
            assert_eq!(Json::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn depth_does_not_matter() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Json::parse(deep).is_ok());
    }

    #[test]
    fn other_text_is_refused_and_not_quoted() {
        for text in ["", "nul", "{} {}", "NaN", r#"{"card":"4111"#, "\u{feff}{}", "[1,]"] {
            let error = Json::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("not valid JSON at line"), "{error}");
            assert!(!error.contains("4111"), "{error}");
        }
    }
}
