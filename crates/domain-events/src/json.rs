//! JSON as text.

use std::fmt;

use serde_json::value::RawValue;

/// The text is not JSON.
///
/// Says where, but quotes nothing: the text may be confidential.
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

/// A JSON value in the text form in which it was stored.
///
/// Known to be well formed; kept as text so that `19.90`, integers beyond 2^53 and the order of
/// keys stay as they are. `Debug` shows the length only: a payload never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// Takes any JSON value.
    ///
    /// # Errors
    ///
    /// When the text is not exactly one JSON value.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, InvalidJson> {
        let text = text.into();
        serde_json::from_str::<&RawValue>(&text)?;
        Ok(Self(text))
    }

    /// Takes text that comes from a column of type `json` or `jsonb`, without checking it again.
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

    /// The text as bytes, without copying it.
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
    fn text_is_kept_to_the_letter() {
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
    fn what_is_not_one_json_value_is_refused_without_being_quoted() {
        for text in ["", "nul", "{} {}", "NaN", r#"{"card":"4111"#, "\u{feff}{}", "[1,]"] {
            let error = Json::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("not valid JSON at line"), "{error}");
            assert!(!error.contains("4111"), "{error}");
        }
    }
}
