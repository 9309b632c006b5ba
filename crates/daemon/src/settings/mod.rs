//! Configuration in layers, read key by key, so that every error is told at once.
//!
//! Later layers win: the built-in defaults, a TOML file, plain environment variables that other
//! tools use too (`AMQP_URL`), environment variables with the daemon's prefix.

mod reader;

use std::collections::BTreeMap;
use std::path::Path;

use config::{Config, File, FileFormat, Map, Source, Value, ValueKind};

pub use reader::{MYSQL, POSTGRESQL, RABBITMQ, Reader, Shown};

/// Every error of a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{} in the configuration:\n  - {}", count(.0.len()), .0.join("\n  - "))]
pub struct Errors(pub Vec<String>);

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") }
}

/// Where a daemon's configuration comes from.
pub struct Layers<'a> {
    /// The defaults, as TOML.
    pub defaults: &'static str,
    /// A TOML file, if one is named.
    pub file: Option<&'a Path>,
    /// Plain variables: name and key.
    pub aliases: &'static [(&'static str, &'static str)],
    /// `PREFIX__SECTION__KEY` sets `section.key`.
    pub prefix: &'static str,
    /// The environment.
    pub environment: BTreeMap<String, String>,
}

impl Layers<'_> {
    /// Loads all layers.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is not TOML.
    pub fn load(self) -> Result<Reader, Errors> {
        let mut builder =
            Config::builder().add_source(File::from_str(self.defaults, FileFormat::Toml));
        // config takes these for paths: `[9999]` for a place in a list, which it makes so long, and what
        // is a section for a value, or for a section, as it comes.
        let mut refused = Vec::new();
        if let Some(file) = self.file {
            let table = require_toml(file)?;
            let paths = table.keys().filter(|key| key.contains(['.', '[']));
            refused.extend(paths.map(|key| format!("unknown key {key} ({})", file.display())));
            builder = builder.add_source(File::from(file).format(FileFormat::Toml));
        }
        let aliases = self.aliases.iter().map(|(name, key)| (*name, (*key).to_owned()));
        let prefix = format!("{}__", self.prefix);
        let prefixed = self.environment.keys().filter_map(|name| {
            let key = name.strip_prefix(&prefix)?;
            Some((name.as_str(), key.to_lowercase().replace("__", ".")))
        });
        let (usable, unusable): (Vec<_>, Vec<_>) =
            prefixed.partition(|(_, key)| key.contains('.') && !key.contains('['));
        let unknown = |(name, key)| format!("unknown key {key} (environment variable {name})");
        refused.extend(unusable.into_iter().map(unknown));
        if !refused.is_empty() {
            return Err(Errors(refused));
        }
        // One after the other, so that of two which are at odds always the same one wins.
        for (name, key) in aliases.chain(usable) {
            builder = builder.add_source(Variable::of(&self.environment, name, key));
        }
        let config = builder.build().map_err(|error| Errors(vec![error.to_string()]))?;
        Ok(Reader::new(config, self.prefix))
    }
}

/// Makes sure that a file is TOML. What is wrong is told without the line, which may hold a password.
fn require_toml(file: &Path) -> Result<toml::Table, Errors> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Errors(vec![format!("{shown} cannot be read: {error}")]))?;
    match text.parse::<toml::Table>() {
        Ok(table) => Ok(table),
        Err(error) => {
            let start = error.span().map_or(0, |span| span.start);
            let line = text[..start.min(text.len())].lines().count().max(1);
            Err(Errors(vec![format!("{shown}, line {line}: {}", error.message())]))
        }
    }
}

/// An environment variable, if it is set, as text, with its name as the origin.
///
/// config's own source reads `no` as 0 and `7.9` as 8; here a value is text until it is read.
#[derive(Debug, Clone)]
struct Variable(Map<String, Value>);

impl Variable {
    fn of(environment: &BTreeMap<String, String>, name: &str, key: String) -> Self {
        let value = environment.get(name).map(|value| {
            let origin = format!("environment variable {name}");
            (key, Value::new(Some(&origin), ValueKind::String(value.clone())))
        });
        Self(value.into_iter().collect())
    }
}

impl Source for Variable {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests;
