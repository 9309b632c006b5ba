//! A statement that is joined to the values of many events.

use std::collections::HashSet;
use std::fmt::Write;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::cell::{CellKind, natural};
use super::columns::{Kind, Padding, TableInfo};
use super::row::{Row, key_text, quoted};
use projection::{Action, Condition, Shape, Statement, Term, Value};

/// A statement in which columns of a table of values replace the parameters.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    /// It has one parameter: the rows as a JSON array.
    pub(super) sql: SqlStr,
    cells: Vec<Cell>,
    /// Whether a set may contain only one row for each key. `UPDATE … JOIN` changes each row of its table
    /// only once; the other statements process equal keys in order.
    pub(super) one_row_per_key: bool,
}

/// A column of the table of values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    parameter: usize,
    kind: CellKind,
    /// How its values compare, if a condition uses it as a key.
    key: Option<Padding>,
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
        table: &TableInfo,
    ) -> Result<Self, String> {
        let mut writer = Writer { statement, shape, table, cells: Vec::new() };
        let (body, one_row_per_key) = match &shape.action {
            Action::Insert { replaces, cells, on_duplicate } => {
                (writer.insert(*replaces, cells, on_duplicate)?, false)
            }
            Action::Update { assignments, conditions } => {
                (writer.update(assignments, conditions)?, true)
            }
            Action::Delete { conditions } => (writer.delete(conditions)?, false),
        };
        let cells = writer.cells;
        let sql = AssertSqlSafe(body.replace(VALUES, &values(&cells))).into_sql_str();
        Ok(Self { sql, cells, one_row_per_key })
    }

    /// The row of an event, or `None` if the type of a column does not hold its value exactly.
    pub(super) fn row(&self, values: &[Value]) -> Option<Row> {
        let encode = |cell: &Cell| cell.kind.encode(values.get(cell.parameter)?);
        self.cells.iter().map(encode).collect()
    }

    /// See [`super::set::SetForm::combine`].
    pub(super) fn combine(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        let mut seen = HashSet::new();
        let fresh =
            rows.iter().take_while(|row| !self.one_row_per_key || seen.insert(self.key(row)));
        let combined: Vec<Row> = fresh.map(|row| (*row).clone()).collect();
        let count = combined.len();
        (combined, count)
    }

    fn key(&self, row: &Row) -> Vec<String> {
        let cells = self.cells.iter().zip(row);
        cells.filter_map(|(cell, value)| Some(key_text(cell.key?, value))).collect()
    }
}

/// Marks the place of the table of values in the SQL until its columns are known.
const VALUES: &str = "\u{0}";

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

/// Writes the SQL of one form.
struct Writer<'w> {
    statement: &'w Statement,
    shape: &'w Shape,
    table: &'w TableInfo,
    cells: Vec<Cell>,
}

/// The place of a parameter in its statement.
#[derive(Clone, Copy)]
enum Place<'p> {
    /// It is the new value of a column.
    Assigned(&'p Kind),
    /// It is an operand of arithmetic with a column.
    Added(&'p Kind),
    /// It is compared with a column.
    Compared(&'p Kind),
    /// Any other place.
    Free,
}

impl<'w> Writer<'w> {
    fn insert(
        &mut self,
        replaces: bool,
        cells: &[(String, Term)],
        on_duplicate: &[(String, Term)],
    ) -> Result<String, String> {
        let verb = if replaces { "REPLACE" } else { "INSERT" };
        let columns: Vec<String> = cells.iter().map(|(column, _)| quoted(column)).collect();
        let mut values = Vec::new();
        for (column, term) in cells {
            if term.has_column() {
                return Err(format!("the value of {column} depends on another column"));
            }
            let kind = self.kind(column)?;
            values.push(self.term(term, Place::Assigned(kind), None)?);
        }
        let table = quoted(&self.shape.table);
        let mut sql = format!(
            "{verb} INTO {table} ({}) SELECT {} FROM {VALUES}",
            columns.join(", "),
            values.join(", ")
        );
        for (index, (column, term)) in on_duplicate.iter().enumerate() {
            let kind = self.kind(column)?;
            let term = self.term(term, Place::Assigned(kind), None)?;
            let separator = if index == 0 { " ON DUPLICATE KEY UPDATE" } else { "," };
            write!(sql, "{separator} {table}.{} = {term}", quoted(column))
                .expect("writing to a String cannot fail");
        }
        Ok(sql)
    }

    fn update(
        &mut self,
        assignments: &[(String, Term)],
        conditions: &[Condition],
    ) -> Result<String, String> {
        let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
        for (column, _) in assignments {
            if keys.contains(&column) || self.table.unique.contains(column) {
                return Err(format!(
                    "it changes {column}, which is part of a unique key or of its WHERE"
                ));
            }
        }
        for (index, (_, term)) in assignments.iter().enumerate() {
            let before = &assignments[..index];
            // An UPDATE of one table assigns from left to right; with a join, MySQL guarantees no order.
            if let Some((column, _)) = before.iter().find(|(column, _)| term.mentions(column)) {
                return Err(format!("it uses {column} after assigning it"));
            }
        }
        let mut sets = Vec::new();
        for (column, term) in assignments {
            let kind = self.kind(column)?;
            let target = format!("{}.{}", quoted(&self.shape.table), quoted(column));
            sets.push(format!("{target} = {}", self.term(term, Place::Assigned(kind), None)?));
        }
        let wheres = self.conditions(conditions)?;
        if !self.cells.iter().any(|cell| cell.key.is_some()) {
            let reason = "its WHERE has no column = :parameter on a column whose values compare \
                          exactly: use COLLATE utf8mb4_0900_bin, an integer, a date or DATETIME(6)";
            return Err(reason.to_owned());
        }
        Ok(format!(
            "UPDATE {} JOIN {VALUES} SET {} WHERE {wheres}",
            quoted(&self.shape.table),
            sets.join(", ")
        ))
    }

    fn delete(&mut self, conditions: &[Condition]) -> Result<String, String> {
        let wheres = self.conditions(conditions)?;
        let table = quoted(&self.shape.table);
        Ok(format!("DELETE {table} FROM {table} JOIN {VALUES} WHERE {wheres}"))
    }

    fn conditions(&mut self, conditions: &[Condition]) -> Result<String, String> {
        let mut parts = Vec::new();
        for condition in conditions {
            parts.push(match condition {
                Condition::IsNull(column, negated) => {
                    let not = if *negated { " NOT" } else { "" };
                    format!("{} IS{not} NULL", self.column(column)?)
                }
                Condition::Compare(left, op, right) => {
                    let (left, right) = match (left, right) {
                        (Term::Column(column), other) => {
                            (self.column(column)?, self.compared(column, op, other)?)
                        }
                        (other, Term::Column(column)) => {
                            (self.compared(column, op, other)?, self.column(column)?)
                        }
                        _ => return Err("it has a comparison without a column".to_owned()),
                    };
                    format!("{left} {op} {right}")
                }
            });
        }
        Ok(parts.join(" AND "))
    }

    /// The operand that a column is compared with, as SQL.
    fn compared(&mut self, column: &str, op: &str, term: &Term) -> Result<String, String> {
        let kind = self.kind(column)?;
        let is_key = op == "=" && matches!(term, Term::Parameter(_));
        let key = kind.exact_key().filter(|_| is_key);
        self.term(term, Place::Compared(kind), key)
    }

    fn term(
        &mut self,
        term: &Term,
        place: Place<'_>,
        key: Option<Padding>,
    ) -> Result<String, String> {
        Ok(match term {
            Term::Parameter(index) => self.parameter(*index, place, key)?,
            Term::Literal(literal) => literal.clone(),
            Term::Column(column) => self.column(column)?,
            Term::Arithmetic(left, op, right) => {
                let place = match (&**left, &**right) {
                    (Term::Column(column), _) | (_, Term::Column(column)) => {
                        Place::Added(self.kind(column)?)
                    }
                    _ => Place::Free,
                };
                let left = self.term(left, place, key)?;
                format!("({left} {op} {})", self.term(right, place, key)?)
            }
            Term::Call(function, arguments) => {
                let arguments: Result<Vec<_>, _> =
                    arguments.iter().map(|term| self.term(term, Place::Free, key)).collect();
                format!("{function}({})", arguments?.join(", "))
            }
        })
    }

    fn parameter(
        &mut self,
        index: usize,
        place: Place<'_>,
        key: Option<Padding>,
    ) -> Result<String, String> {
        let parameter = &self.statement.parameters[index];
        let natural = natural(parameter.source);
        let kind = match (place, natural) {
            (Place::Compared(kind), _) => CellKind::of(kind),
            (Place::Added(kind), natural) => match (kind, natural) {
                (Kind::Integer { .. } | Kind::Decimal { .. }, None | Some(CellKind::Integer)) => {
                    CellKind::of(kind)
                }
                _ => None,
            },
            (_, Some(natural)) => Some(natural),
            (Place::Assigned(kind), None) => CellKind::of(kind).map(CellKind::stored),
            (Place::Free, None) => None,
        };
        let kind =
            kind.ok_or_else(|| format!("the type of {parameter} does not follow from its place"))?;
        Ok(self.cell(Cell { parameter: index, kind, key }))
    }

    fn cell(&mut self, cell: Cell) -> String {
        let index = self.cells.iter().position(|known| *known == cell).unwrap_or_else(|| {
            self.cells.push(cell);
            self.cells.len() - 1
        });
        format!("events.projector__{index}")
    }

    fn column(&self, column: &str) -> Result<String, String> {
        self.kind(column)?;
        Ok(format!("{}.{}", quoted(&self.shape.table), quoted(column)))
    }

    fn kind(&self, column: &str) -> Result<&'w Kind, String> {
        match self.table.columns.get(column) {
            None => Err(format!("{} has no column {column}", self.shape.table)),
            Some(column) => Ok(&column.kind),
        }
    }
}
