//! A statement that is joined to the values of many events.

use std::collections::HashMap;
use std::fmt::Write;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::cells::Cell;
use super::columns::TableInfo;
use super::row::{Row, batchable, because};
use super::writer::Writer;
use projection::{Action, NotBatchable, Shape, Statement, Value};

/// A statement in which columns of a table of values replace the parameters.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    /// It has one parameter: the rows as a JSON array.
    pub(super) sql: SqlStr,
    cells: Vec<Cell>,
    /// The columns that equal a cell in every row that it changes, with the number of the cell.
    pub(super) pins: Vec<(String, usize)>,
    /// The tables that its subqueries read, with the same for the rows that they read.
    pub(super) reads: Vec<(String, Vec<(String, usize)>)>,
}

impl Joined {
    /// Derives the form of a statement.
    ///
    /// # Errors
    ///
    /// The reason why the statement cannot run as a set.
    pub(super) fn of(
        statement: &Statement,
        shape: &Shape,
        tables: &HashMap<String, TableInfo>,
    ) -> Result<Self, NotBatchable> {
        let (_, table) = batchable(statement, tables)?;
        let here = because(statement, "").place;
        let mut writer = Writer {
            statement,
            shape,
            tables,
            table,
            cells: Vec::new(),
            pins: Vec::new(),
            reads: Vec::new(),
            found: None,
            here,
            changed: HashMap::new(),
            ignores: matches!(shape.action, Action::Insert { ignores: true, .. }),
            lenient: false,
        };
        let body = match &shape.action {
            Action::Insert { replaces, ignores, source, cells, on_duplicate } => {
                let verb = match (replaces, ignores) {
                    (true, _) => "REPLACE",
                    (false, true) => "INSERT IGNORE",
                    (false, false) => "INSERT",
                };
                writer.insert(verb, source.as_ref(), cells, on_duplicate)?
            }
            Action::Update { assignments, conditions } => writer.update(assignments, conditions)?,
            Action::Delete { conditions } => writer.delete(conditions)?,
        };
        let Writer { cells, pins, reads, .. } = writer;
        let sql = AssertSqlSafe(body.replace(VALUES, &values(&cells))).into_sql_str();
        Ok(Self { sql, cells, pins, reads })
    }

    /// The row of an event, or `None` if a cell does not take its value.
    pub(super) fn row(&self, values: &[Value]) -> Option<Row> {
        self.cells.iter().map(|cell| cell.encode(values)).collect()
    }
}

/// Marks the place of the table of values in the SQL until its columns are known.
pub(super) const VALUES: &str = "\u{0}";

/// The name of a column of the table of values, without its number.
pub(super) const CELL: &str = "events.projector__";

/// The table of values, as SQL. `ERROR ON ERROR` lets the statement fail where an invalid value would
/// become NULL.
fn values(cells: &[Cell]) -> String {
    if cells.is_empty() {
        // The table still needs one row for each event.
        return "JSON_TABLE(?, '$[*]' COLUMNS (projector__0 FOR ORDINALITY)) AS events".to_owned();
    }
    let mut columns = String::new();
    for (index, cell) in cells.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let kind = cell.kind.sql();
        write!(columns, "{separator}projector__{index} {kind} PATH '$[{index}]' ERROR ON ERROR")
            .expect("writing to a String cannot fail");
    }
    format!("JSON_TABLE(?, '$[*]' COLUMNS ({columns})) AS events")
}
