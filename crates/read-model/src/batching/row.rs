//! What all forms of sets share: the values of one event, and the names of tables and columns.

use std::collections::HashMap;

use projection::{LineColumn, NotBatchable, Shape, Statement};
use serde_json::Value as Json;

use super::columns::{Padding, TableInfo};

/// The values of one event for a set, in the order of the columns of `JSON_TABLE`.
pub(crate) type Row = Vec<Json>;

/// The shape of a statement and its table.
///
/// # Errors
///
/// The reason why the statement cannot run as a set.
pub(crate) fn batchable<'s>(
    statement: &'s Statement,
    tables: &'s HashMap<String, TableInfo>,
) -> Result<(&'s Shape, &'s TableInfo), NotBatchable> {
    let shape = statement.shape.as_ref().map_err(Clone::clone)?;
    let unknown =
        || because(statement, format!("{} is not a table of this projection", shape.table));
    let table = tables.get(&shape.table).ok_or_else(unknown)?;
    match &table.has_trigger_or_foreign_key {
        Some(reason) => Err(because(statement, reason.clone())),
        None => Ok((shape, table)),
    }
}

/// A reason that concerns a statement as a whole.
pub(crate) fn because(statement: &Statement, reason: impl Into<String>) -> NotBatchable {
    let place = LineColumn { line: statement.line, column: statement.column };
    NotBatchable { place, reason: reason.into() }
}

/// The text of a key. Two keys have equal texts exactly if MySQL compares them as equal.
pub(crate) fn key_text(padding: Padding, value: &Json) -> String {
    match (padding, value) {
        (Padding::Spaces, Json::String(text)) => format!("\"{}", text.trim_end_matches(' ')),
        (Padding::None, Json::String(text)) => format!("\"{text}"),
        (_, other) => other.to_string(),
    }
}

/// An identifier in backticks.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
