//! Reading keys one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, Value, ValueKind};
use secrecy::SecretString;
use url::Url;

use super::Errors;

/// What a URL of PostgreSQL begins with.
pub const POSTGRESQL: [&str; 2] = ["postgres", "postgresql"];
/// What a URL of RabbitMQ begins with.
pub const RABBITMQ: [&str; 2] = ["amqp", "amqps"];
/// What a URL of MySQL begins with.
pub const MYSQL: [&str; 1] = ["mysql"];

/// Reads the keys of a configuration and remembers every error.
///
/// A key that is wrong reads as a harmless value, so that reading goes on; [`Reader::finish`] then
/// refuses the whole.
pub struct Reader {
    values: BTreeMap<String, Value>,
    prefix: &'static str,
    read: BTreeSet<String>,
    ignored_sections: Vec<&'static str>,
    errors: Vec<String>,
    wrong: BTreeSet<&'static str>,
    shown: Vec<Shown>,
}

/// A key, its value and where that came from, for `config show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `section.key`.
    pub key: &'static str,
    /// The value as TOML; a secret without its secret part.
    pub value: String,
    /// A file, an environment variable, or the defaults.
    pub origin: String,
}

impl Reader {
    pub(super) fn new(config: Config, prefix: &'static str) -> Self {
        let mut values = BTreeMap::new();
        flatten(String::new(), config.cache, &mut values);
        Self {
            values,
            prefix,
            read: BTreeSet::new(),
            ignored_sections: Vec::new(),
            errors: Vec::new(),
            wrong: BTreeSet::new(),
            shown: Vec::new(),
        }
    }

    /// Leaves a section to the other daemon, with which a file may be shared.
    pub fn ignore_section(&mut self, section: &'static str) {
        self.ignored_sections.push(section);
    }

    /// Text that is not empty.
    pub fn text(&mut self, key: &'static str) -> String {
        self.parse(key, "text", |text| (!text.is_empty()).then(|| text.to_owned()))
            .unwrap_or_default()
    }

    /// A path.
    pub fn path(&mut self, key: &'static str) -> PathBuf {
        PathBuf::from(self.text(key))
    }

    /// Texts separated by commas, or a TOML array; may be empty.
    pub fn list(&mut self, key: &'static str) -> Vec<String> {
        let split = |text: &str| {
            let parts = text.split(',').map(|part| part.trim().to_owned());
            Some(parts.filter(|part| !part.is_empty()).collect())
        };
        self.parse(key, "a list", split).unwrap_or_default()
    }

    /// A list, each part of which has a form; `expected` describes it.
    pub fn parsed_list<T: std::str::FromStr>(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Vec<T> {
        let split = |text: &str| {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| part.parse().ok()).collect()
        };
        self.parse(key, expected, split).unwrap_or_default()
    }

    /// An integer in a range.
    pub fn integer<N>(&mut self, key: &'static str, range: RangeInclusive<N>) -> N
    where
        N: std::str::FromStr + PartialOrd + Display + Copy,
    {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.parse(key, &expected, |text| text.parse().ok().filter(|number| range.contains(number)))
            .unwrap_or(*range.start())
    }

    /// A length of time in a range, written as `250ms`, `10s`, `5m`.
    pub fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        let show = |duration: &Duration| humantime::format_duration(*duration).to_string();
        let expected = format!(
            "a duration such as 250ms or 10s, from {} to {}",
            show(range.start()),
            show(range.end())
        );
        let parse = |text: &str| {
            humantime::parse_duration(text).ok().filter(|duration| range.contains(duration))
        };
        self.parse(key, &expected, parse).unwrap_or(*range.start())
    }

    /// One of several words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let expected = format!("one of {}", words.join(", "));
        let find =
            |text: &str| choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        self.parse(key, &expected, find).unwrap_or(choices[0].1)
    }

    /// An IP address and a port.
    pub fn address(&mut self, key: &'static str) -> SocketAddr {
        self.parse(key, "an address such as 127.0.0.1:9464", |text| text.parse().ok())
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// A URL with one of some schemes, which may hold a password: the key itself, or the content of
    /// the file that `<key>_file` names. It may be missing unless it is needed.
    pub fn secret_url(
        &mut self,
        key: &'static str,
        schemes: &[&str],
        needed: bool,
    ) -> SecretString {
        let file_key = format!("{key}_file");
        self.read.extend([key.to_owned(), file_key.clone()]);
        let direct = self.values.get(key).map(|value| (text_of(value), origin(value)));
        let file = self.values.get(&file_key).map(text_of);
        let (url, origin) = match (direct, file) {
            (Some(_), Some(_)) => {
                self.errors.push(format!("{key} and {file_key} are both set: set one"));
                return SecretString::default();
            }
            (Some((url, origin)), None) => (url.unwrap_or_default(), origin),
            (None, Some(path)) => match self.read_secret(&file_key, path.as_deref()) {
                Some(url) => (url, file_key),
                None => return SecretString::default(),
            },
            (None, None) if !needed => return SecretString::default(),
            (None, None) => {
                let variable = format!("{}__{}", self.prefix, variable(key));
                self.errors.push(format!("{key} is missing: set {variable}, or {key} in a file"));
                return SecretString::default();
            }
        };
        let Some(value) = redacted(&url) else {
            self.errors.push(format!("{key} is not a URL ({origin})"));
            return SecretString::default();
        };
        if !schemes.iter().any(|scheme| value.scheme() == *scheme) {
            let schemes = schemes.join(":// or ");
            self.errors.push(format!("{key} does not begin with {schemes}:// ({origin})"));
            return SecretString::default();
        }
        let value = toml(value.into());
        self.shown.push(Shown { key, value, origin });
        SecretString::from(url)
    }

    /// Adds an error about several keys unless a condition holds, or one of them is wrong itself.
    pub fn require(&mut self, keys: &[&'static str], condition: bool, error: &str) {
        if !condition && keys.iter().all(|key| !self.wrong.contains(key)) {
            self.errors.push(error.to_owned());
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    ///
    /// With every error found, unknown keys included.
    pub fn finish(mut self) -> Result<Vec<Shown>, Errors> {
        for (key, value) in &self.values {
            let section = key.split('.').next().unwrap_or_default();
            if !self.read.contains(key) && !self.ignored_sections.contains(&section) {
                self.errors.push(format!("unknown key {key} ({})", origin(value)));
            }
        }
        if self.errors.is_empty() { Ok(self.shown) } else { Err(Errors(self.errors)) }
    }

    fn parse<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.read.insert(key.to_owned());
        let Some(value) = self.values.get(key) else {
            self.errors.push(format!("{key} is missing: expected {expected}"));
            self.wrong.insert(key);
            return None;
        };
        let origin = origin(value);
        let parsed = text_of(value).and_then(|text| parse(&text));
        if parsed.is_some() {
            let value = match &value.kind {
                ValueKind::String(_) | ValueKind::Array(_) => {
                    toml(text_of(value).unwrap_or_default())
                }
                other => other.to_string(),
            };
            self.shown.push(Shown { key, value, origin });
        } else {
            self.errors.push(format!("{key} is not {expected} ({origin})"));
            self.wrong.insert(key);
        }
        parsed
    }

    fn read_secret(&mut self, key: &str, path: Option<&str>) -> Option<String> {
        let path = Path::new(path.unwrap_or_default());
        match std::fs::read_to_string(path) {
            Ok(content) => Some(content.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => {
                let path = path.display();
                self.errors.push(format!("{key}: {path} cannot be read: {error}"));
                None
            }
        }
    }
}

fn flatten(key: String, value: Value, values: &mut BTreeMap<String, Value>) {
    match value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(key, value, values);
            }
        }
        _ => drop(values.insert(key, value)),
    }
}

/// The value as text; numbers as they are written in TOML.
fn text_of(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.clone()),
        ValueKind::I64(number) => Some(number.to_string()),
        ValueKind::Boolean(flag) => Some(flag.to_string()),
        ValueKind::Array(items) => {
            let text = |item: &Value| text_of(item).filter(|_| !is_array(item));
            let items: Option<Vec<String>> = items.iter().map(text).collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}

fn is_array(value: &Value) -> bool {
    matches!(value.kind, ValueKind::Array(_))
}

fn origin(value: &Value) -> String {
    value.origin().unwrap_or("default").to_owned()
}

fn variable(key: &str) -> String {
    key.to_uppercase().replace('.', "__")
}

/// The URL without its password, and without a query, which may hold one too.
fn redacted(url: &str) -> Option<Url> {
    // Without `//` everything behind the colon is a path, the password too.
    let mut url = Url::parse(url).ok().filter(Url::has_authority)?;
    if url.password().is_some() {
        url.set_password(Some("***")).ok()?;
    }
    if url.query().is_some() {
        url.set_query(Some("***"));
    }
    Some(url)
}

/// A text as TOML has it.
fn toml(text: String) -> String {
    toml::Value::String(text).to_string()
}
