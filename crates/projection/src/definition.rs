//! A projection: tables, and how events change them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use domain_events::{Category, EventType, SchemaVersion};

use crate::Statement;

/// A read model and how events change it.
#[derive(Debug, Clone)]
pub struct Projection {
    /// The name of its directory: lower-case letters, digits and single underscores.
    pub name: String,
    /// The categories whose streams it follows.
    pub categories: Vec<Category>,
    /// How many queues share its events, by a hash of the stream.
    pub partitions: u16,
    /// How many transactions work on one queue side by side.
    pub lanes: u16,
    /// Its tables, in the order in which they are created.
    pub tables: Vec<Table>,
    /// Tells whether `tables.sql` has changed.
    pub tables_hash: String,
    /// Tells whether any file has.
    pub definition_hash: String,
    /// None where the projection is in Rust.
    pub(crate) handlers: Handlers,
    /// Whether a Rust type applies its events, instead of SQL.
    pub is_rust: bool,
}

/// The name of the file for event types that have none of their own.
const DEFAULT: &str = "default";

/// By event type and schema version.
pub(crate) type Handlers = BTreeMap<String, BTreeMap<SchemaVersion, Arc<Handler>>>;

/// A table of a read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name, unquoted.
    pub name: String,
    /// The `CREATE TABLE` statement.
    pub create: Statement,
}

/// What an event type does to the read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Run in order, in the transaction of the batch.
    pub statements: Vec<Statement>,
}

/// The handler of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'p> {
    /// The newest handler that is not newer than the event.
    Found(&'p Arc<Handler>),
    /// The projection has no handler for the type: the event changes nothing.
    Unhandled,
    /// The projection handles the type, but not this form of the payload: it is newer than every
    /// handler, or older.
    UnknownSchema,
}

/// A mistake in a projection's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the directory where no file is to blame.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: Option<u64>,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl Projection {
    /// Finds the handler of an event.
    pub fn lookup(&self, event_type: &EventType, schema_version: SchemaVersion) -> Lookup<'_> {
        let Some(versions) = self.handlers.get(event_type.as_str()) else {
            let default = self.handlers.get(DEFAULT).and_then(|versions| versions.values().next());
            return default.map_or(Lookup::Unhandled, Lookup::Found);
        };
        let known = versions.range(..=schema_version).next_back();
        let newest = versions.keys().next_back();
        match known {
            Some((_, handler)) if newest >= Some(&schema_version) => Lookup::Found(handler),
            _ => Lookup::UnknownSchema,
        }
    }

    /// Every handler, with its event type and schema version.
    pub fn handlers(&self) -> impl Iterator<Item = (String, &Handler)> {
        self.handlers.iter().flat_map(|(event_type, versions)| {
            versions.iter().map(move |(version, handler)| {
                let name = match version.get() {
                    1 => event_type.clone(),
                    number => format!("{event_type}.v{number}"),
                };
                (name, &**handler)
            })
        })
    }

    /// The statements of every handler.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        let handlers = self.handlers.values().flat_map(BTreeMap::values);
        handlers.flat_map(|handler| &handler.statements)
    }
}
