//! The definition of a projection: its tables, and the handlers that change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use domain_events::{Category, EventType, SchemaVersion};
use serde::Deserialize;

use crate::Statement;

/// The tables of a read model, and the handlers that apply events to them.
#[derive(Debug, Clone)]
pub struct Projection {
    /// The name of its directory: lower-case letters, digits and single underscores.
    pub name: String,
    /// The categories whose streams the projection follows.
    pub categories: Vec<Category>,
    /// The number of queues that share its events. A hash of the stream id selects the queue.
    pub partitions: u16,
    /// The number of transactions that may run in parallel for one queue.
    pub lanes: u16,
    /// Whether an event is refused whose value MySQL would change to fit a column.
    pub strict: bool,
    /// The order of events that it needs; `None` if its tables decide.
    pub order: Option<Order>,
    /// Its tables, in the order in which they are created.
    pub tables: Vec<Table>,
    /// SHA-256 of `tables.sql` in hexadecimal digits. It changes when the file changes.
    pub tables_hash: String,
    /// SHA-256 of all files that decide the content of the read model, in hexadecimal digits.
    pub definition_hash: String,
    /// The text of these files by name: `tables.sql` and those of the handlers.
    pub files: Arc<BTreeMap<String, String>>,
    /// Empty when a Rust type implements the projection.
    pub(crate) handlers: Handlers,
    /// Whether a Rust type applies the events, instead of SQL handlers.
    pub is_rust: bool,
}

/// The order in which a projection needs its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Events of one stream in the order of their versions; events of different streams in any order.
    Stream,
    /// All events in the order of the event store.
    Global,
}

impl Order {
    /// As `projection.toml` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Global => "global",
        }
    }

    /// The order with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Stream, Self::Global].into_iter().find(|order| order.name() == name)
    }
}

/// The stem of the file that handles every event type without a file of its own.
const DEFAULT: &str = "default";

/// Handlers by event type and schema version.
pub(crate) type Handlers = BTreeMap<String, BTreeMap<SchemaVersion, Arc<Handler>>>;

/// A table of a read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name, unquoted.
    pub name: String,
    /// The `CREATE TABLE` statement.
    pub create: Statement,
}

/// The statements that apply one event type to the read model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// They run in this order, in the transaction of the batch.
    pub statements: Vec<Statement>,
}

/// The result of looking up the handler of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'p> {
    /// The handler with the highest schema version that does not exceed that of the event.
    Found(&'p Arc<Handler>),
    /// The projection has no handler for the event type: the event changes nothing.
    Unhandled,
    /// The projection handles the event type, but the event's schema version is above that of every
    /// handler, or below.
    UnknownSchema,
}

impl Projection {
    /// Finds the handler for an event type and schema version.
    pub fn lookup(&self, event_type: &EventType, schema_version: SchemaVersion) -> Lookup<'_> {
        let own = self.handlers.get(event_type.as_str());
        let Some(versions) = own.or_else(|| self.handlers.get(DEFAULT)) else {
            return Lookup::Unhandled;
        };
        let known = versions.range(..=schema_version).next_back();
        let newest = versions.keys().next_back();
        match known {
            Some((_, handler)) if newest >= Some(&schema_version) => Lookup::Found(handler),
            _ => Lookup::UnknownSchema,
        }
    }

    /// Every handler with its name: `OrderPlaced`, or `OrderPlaced.v2` for a higher schema version.
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
