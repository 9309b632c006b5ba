//! Projections: directories with SQL, one file for each event type.

mod load;
mod parameter;
mod statement;
mod tokens;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use domain_events::{Category, EventType, SchemaVersion};

pub(crate) use load::load_all;
pub(crate) use parameter::BindError;
pub(crate) use statement::Statement;
pub(crate) use value::Value;

/// A read model and how events change it.
#[derive(Debug)]
pub(crate) struct Projection {
    /// The name of its directory: lower-case letters, digits and single underscores.
    pub(crate) name: String,
    /// The categories whose streams it follows.
    pub(crate) categories: Vec<Category>,
    /// Its tables, in the order in which they are created.
    pub(crate) tables: Vec<Table>,
    /// Tells whether `tables.sql` has changed.
    pub(crate) tables_hash: String,
    handlers: Handlers,
}

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
    Found(&'p Handler),
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
            return Lookup::Unhandled;
        };
        let known = versions.range(..=schema_version).next_back();
        let newest = versions.keys().next_back();
        match known {
            Some((_, handler)) if newest >= Some(&schema_version) => Lookup::Found(handler),
            _ => Lookup::UnknownSchema,
        }
    }

    /// The statements of every handler.
    pub(crate) fn statements(&self) -> impl Iterator<Item = &Statement> {
        let handlers = self.handlers.values().flat_map(BTreeMap::values);
        handlers.flat_map(|handler| &handler.statements)
    }
}

#[cfg(test)]
mod tests;
