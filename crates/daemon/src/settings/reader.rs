//! Reads keys one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::Serialize;
use toml::Value;
use url::{Position, Url};

use super::Errors;
use super::layers::Setting;

/// The schemes of a PostgreSQL URL.
pub const POSTGRESQL: [&str; 2] = ["postgres", "postgresql"];
/// The schemes of a RabbitMQ URL.
pub const RABBITMQ: [&str; 2] = ["amqp", "amqps"];
/// The scheme of a MySQL URL.
pub const MYSQL: [&str; 1] = ["mysql"];

/// Reads the keys of a configuration, and collects the errors.
///
/// A wrong key is read as a valid value, so that the next keys are read too. [`Reader::finish`] then
/// returns all errors.
pub struct Reader {
    settings: BTreeMap<String, Setting>,
    prefix: &'static str,
    read: BTreeSet<String>,
    ignored_sections: Vec<&'static str>,
    errors: Vec<String>,
    wrong: BTreeSet<&'static str>,
    shown: Vec<Shown>,
}

/// A key with its value and its origin, for `config show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `section.key`.
    pub key: &'static str,
    /// The value as TOML, without the secret part of a secret.
    pub value: String,
    /// `default`, a file or an environment variable.
    pub origin: String,
}

impl Reader {
    pub(super) fn new(settings: BTreeMap<String, Setting>, prefix: &'static str) -> Self {
        Self {
            settings,
            prefix,
            read: BTreeSet::new(),
            ignored_sections: Vec::new(),
            errors: Vec::new(),
            wrong: BTreeSet::new(),
            shown: Vec::new(),
        }
    }

    /// Ignores a section that belongs to the other daemon: both may share a file.
    pub fn ignore_section(&mut self, section: &'static str) {
        self.ignored_sections.push(section);
    }

    /// Reads a text that is not empty.
    pub fn text(&mut self, key: &'static str) -> String {
        self.parse(key, "text", |text| (!text.is_empty()).then(|| text.to_owned()))
            .unwrap_or_default()
    }

    /// Reads a path.
    pub fn path(&mut self, key: &'static str) -> PathBuf {
        PathBuf::from(self.text(key))
    }

    /// Reads a list, which may be empty: a TOML array, or a text with commas between the parts.
    pub fn list(&mut self, key: &'static str) -> Vec<String> {
        let split = |text: &str| {
            let parts = text.split(',').map(|part| part.trim().to_owned());
            Some(parts.filter(|part| !part.is_empty()).collect())
        };
        self.parse(key, "a list", split).unwrap_or_default()
    }

    /// Reads a list whose parts are parsed; `expected` describes the list.
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

    /// Reads an integer in a range.
    pub fn integer<N>(&mut self, key: &'static str, range: RangeInclusive<N>) -> N
    where
        N: std::str::FromStr + PartialOrd + Display + Copy,
    {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.parse(key, &expected, |text| text.parse().ok().filter(|number| range.contains(number)))
            .unwrap_or(*range.start())
    }

    /// Reads a duration in a range, written as `250ms`, `10s` or `5m`.
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

    /// Reads one of several words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let expected = format!("one of {}", words.join(", "));
        let find =
            |text: &str| choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        self.parse(key, &expected, find).unwrap_or(choices[0].1)
    }

    /// Reads an IP address with a port.
    pub fn address(&mut self, key: &'static str) -> SocketAddr {
        self.parse(key, "an address such as 127.0.0.1:9464", |text| text.parse().ok())
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Reads a URL, which may contain a password: the value of `key`, or the content of the file that
    /// `<key>_file` names. It may be missing unless it is `needed`.
    pub fn secret_url(
        &mut self,
        key: &'static str,
        schemes: &[&str],
        needed: bool,
    ) -> SecretString {
        let file_key = format!("{key}_file");
        self.read.extend([key.to_owned(), file_key.clone()]);
        let direct = self.settings.get(key);
        let direct = direct.map(|setting| (text_of(&setting.value), setting.origin.clone()));
        let file = self.settings.get(&file_key).map(|setting| text_of(&setting.value));
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
        if !schemes.iter().any(|scheme| value.starts_with(&format!("{scheme}://"))) {
            let schemes = schemes.join(":// or ");
            self.errors.push(format!("{key} does not begin with {schemes}:// ({origin})"));
            return SecretString::default();
        }
        let value = toml(value);
        self.shown.push(Shown { key, value, origin });
        SecretString::from(url)
    }

    /// Adds an error about several keys, unless the condition holds or one of the keys is wrong itself.
    pub fn require(&mut self, keys: &[&'static str], condition: bool, error: &str) {
        if !condition && keys.iter().all(|key| !self.wrong.contains(key)) {
            self.errors.push(error.to_owned());
        }
    }

    /// Ends reading, and returns all keys in the order in which they were read.
    ///
    /// # Errors
    ///
    /// All errors found, including unknown keys.
    pub fn finish(mut self) -> Result<Vec<Shown>, Errors> {
        for (key, setting) in &self.settings {
            let section = key.split('.').next().unwrap_or_default();
            if !self.read.contains(key) && !self.ignored_sections.contains(&section) {
                self.errors.push(format!("unknown key {key} ({})", setting.origin));
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
        let Some(Setting { value, origin }) = self.settings.get(key) else {
            self.errors.push(format!("{key} is missing: expected {expected}"));
            self.wrong.insert(key);
            return None;
        };
        let origin = origin.clone();
        let parsed = text_of(value).and_then(|text| parse(&text));
        if parsed.is_some() {
            let value = match value {
                Value::String(_) | Value::Array(_) => toml(text_of(value).unwrap_or_default()),
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

/// The value as text, with the parts of a list separated by commas. `None` for a float, a date, a table
/// and a list of lists: no key has such a value.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Array(items) => {
            let text = |item: &Value| text_of(item).filter(|_| !item.is_array());
            let items: Option<Vec<String>> = items.iter().map(text).collect();
            items.map(|items| items.join(","))
        }
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}

fn variable(key: &str) -> String {
    key.to_uppercase().replace('.', "__")
}

/// The URL without its password and its query, which may contain one too. `None` if it is not a URL. A URL may name
/// several hosts, separated by commas.
fn redacted(url: &str) -> Option<String> {
    let each: Vec<Url> =
        hosts::each(url).iter().map(|url| redacted_one(url)).collect::<Option<_>>()?;
    let first = each.first()?;
    let login = &first[..Position::BeforeHost];
    let hosts: Vec<&str> =
        each.iter().map(|url| &url[Position::BeforeHost..Position::BeforePath]).collect();
    Some(format!("{login}{}{}", hosts.join(","), &first[Position::BeforePath..]))
}

fn redacted_one(url: &str) -> Option<Url> {
    // Without `//`, the URL has no authority: a password would be part of its path.
    let mut url = Url::parse(url).ok().filter(Url::has_authority)?;
    if url.password().is_some() {
        url.set_password(Some("***")).ok()?;
    }
    if url.query().is_some() {
        url.set_query(Some("***"));
    }
    Some(url)
}

/// A text as a TOML value.
fn toml(text: String) -> String {
    Value::String(text).to_string()
}
