//! Projections: directories with SQL, one file for each event type.

mod directive;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod load;
mod parameter;
mod refuse;
mod shape;
mod statement;
mod tokens;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use domain_events::{Category, EventType, SchemaVersion};

use crate::code::RustProjection;

pub(crate) use load::load_all;
pub(crate) use parameter::{BindError, Source};
pub(crate) use shape::{Action, Condition, Shape, Term};
pub(crate) use statement::Statement;
pub use value::Value;

/// A read model and how events change it.
#[derive(Debug, Clone)]
pub(crate) struct Projection {
    /// The name of its directory: lower-case letters, digits and single underscores.
    pub(crate) name: String,
    /// The categories whose streams it follows.
    pub(crate) categories: Vec<Category>,
    /// How many queues share its events, by a hash of the stream.
    pub(crate) partitions: u16,
    /// How many transactions work on one queue side by side.
    pub(crate) lanes: u16,
    /// Its tables, in the order in which they are created.
    pub(crate) tables: Vec<Table>,
    /// Tells whether `tables.sql` has changed.
    pub(crate) tables_hash: String,
    /// Tells whether any file has.
    pub(crate) definition_hash: String,
    handlers: Handlers,
    /// What is done with events instead, if the projection is in Rust.
    pub(crate) code: Option<Arc<dyn RustProjection>>,
}

/// The name of the file for event types that have none of their own.
const DEFAULT: &str = "default";

/// By event type and schema version.
type Handlers = BTreeMap<String, BTreeMap<SchemaVersion, Arc<Handler>>>;

/// A table of a read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its name, unquoted.
    pub(crate) name: String,
    /// The `CREATE TABLE` statement.
    pub(crate) create: Statement,
}

/// What an event type does to the read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handler {
    /// Run in order, in the transaction of the batch.
    pub(crate) statements: Vec<Statement>,
}

/// The handler of an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<'p> {
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
pub(crate) struct Fault {
    /// The file, or the directory where no file is to blame.
    pub(crate) file: PathBuf,
    /// The line, from 1.
    pub(crate) line: Option<u64>,
    /// What is wrong, and what to do.
    pub(crate) reason: String,
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
    pub(crate) fn lookup(
        &self,
        event_type: &EventType,
        schema_version: SchemaVersion,
    ) -> Lookup<'_> {
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
    pub(crate) fn handlers(&self) -> impl Iterator<Item = (String, &Handler)> {
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
    pub(crate) fn statements(&self) -> impl Iterator<Item = &Statement> {
        let handlers = self.handlers.values().flat_map(BTreeMap::values);
        handlers.flat_map(|handler| &handler.statements)
    }
}

#[cfg(test)]
mod tests;
