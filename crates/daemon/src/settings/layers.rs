//! The layers of a configuration, merged key by key.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::{Errors, Reader};

/// The sources of a daemon's configuration.
pub struct Layers<'a> {
    /// The defaults, as TOML.
    pub defaults: &'static str,
    /// A TOML file, if one is given.
    pub file: Option<&'a Path>,
    /// Environment variables without the prefix: name and key.
    pub aliases: &'static [(&'static str, &'static str)],
    /// `PREFIX__SECTION__KEY` sets `section.key`.
    pub prefix: &'static str,
    /// The environment.
    pub environment: BTreeMap<String, String>,
}

/// A value, and the layer that it comes from.
pub(super) struct Setting {
    pub(super) value: Value,
    /// `default`, the path of a file, or the name of an environment variable.
    pub(super) origin: String,
}

impl Layers<'_> {
    /// Merges the layers.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is not TOML.
    ///
    /// # Panics
    ///
    /// When the defaults, which are part of the program, are not TOML.
    pub fn load(self) -> Result<Reader, Errors> {
        let mut settings = BTreeMap::new();
        let defaults: Table = self.defaults.parse().expect("the defaults are TOML");
        insert_table("", defaults, "default", &mut settings);
        if let Some(file) = self.file {
            insert_table("", read_toml(file)?, &file.display().to_string(), &mut settings);
        }
        let prefix = format!("{}__", self.prefix);
        let aliases = self.aliases.iter().filter_map(|(name, key)| {
            let (name, value) = self.environment.get_key_value(*name)?;
            Some((name, (*key).to_owned(), value))
        });
        let prefixed = self.environment.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(&prefix)?;
            Some((name, key.to_lowercase().replace("__", "."), value))
        });
        for (name, key, value) in aliases.chain(prefixed) {
            let value = Value::String(value.clone());
            settings.insert(key, Setting { value, origin: format!("environment variable {name}") });
        }
        Ok(Reader::new(settings, self.prefix))
    }
}

/// Inserts the values of a table and of the tables in it, with `section.key` as key.
fn insert_table(
    section: &str,
    table: Table,
    origin: &str,
    settings: &mut BTreeMap<String, Setting>,
) {
    for (name, value) in table {
        // A name with a dot must not be taken for a section and a key.
        let name = if name.contains('.') { format!("\"{name}\"") } else { name };
        let key = if section.is_empty() { name } else { format!("{section}.{name}") };
        match value {
            Value::Table(table) => insert_table(&key, table, origin, settings),
            value => drop(settings.insert(key, Setting { value, origin: origin.to_owned() })),
        }
    }
}

/// Parses a TOML file. An error gives the number of the line, not its text, which may contain a
/// password.
fn read_toml(file: &Path) -> Result<Table, Errors> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Errors(vec![format!("{shown} cannot be read: {error}")]))?;
    text.parse::<Table>().map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text[..start.min(text.len())].lines().count().max(1);
        Errors(vec![format!("{shown}, line {line}: {}", error.message())])
    })
}
