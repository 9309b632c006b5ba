//! One statement for many events.
//!
//! A handler is written for one event. Where its statement has a [`Shape`], the same can be said for
//! many events at once: the statement is joined to a table of their values, which comes as one JSON
//! parameter, so that its text is the same for any number of events and prepared once.
//!
//! ```sql
//! UPDATE customers SET paid = paid + ? WHERE id = ?
//!
//! UPDATE customers JOIN JSON_TABLE(?, '$[*]' COLUMNS (…)) AS events
//!    SET paid = paid + events.projector__0 WHERE id = events.projector__1
//! ```
//!
//! **Invariant:** a set gives what its events give one by one, or fails as a whole and is then done one
//! by one. A value that the type of its column does not hold exactly never goes into a set. A property
//! test compares both ways.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::Value as Json;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::cell::{CellKind, natural};
use super::columns::{Kind, Padding, TableInfo};
use super::merge::Merged;
use projection::{Action, Condition, Shape, Source, Statement, Term, Value};

/// A statement for many events.
#[derive(Debug, Clone)]
pub struct SetForm {
    kind: FormKind,
    /// What the rows belong to that an event changes, if they belong to something of it alone.
    pub owner: Option<Owner>,
    /// Whether each row must find exactly one row of the table.
    pub finds_one: bool,
}

/// What the rows that a statement changes belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// To the stream, which this column names.
    Stream(String),
    /// To the event.
    Event,
}

#[derive(Debug, Clone)]
enum FormKind {
    Joined(Joined),
    Merged(Merged),
}

/// The values of one event, as they go into a set.
pub(crate) type Row = Vec<Json>;

impl SetForm {
    /// The form of a statement for many events, or why there is none.
    pub fn of(
        statement: &Statement,
        tables: &HashMap<String, TableInfo>,
        merged: Option<Merged>,
    ) -> Result<Self, String> {
        let (shape, table) = batchable(statement, tables)?;
        let finds_one = match statement.rows {
            None => false,
            Some(1) if keys_cover(shape, &table.primary) => true,
            Some(_) => return Err("rows are counted that are not found by primary key".to_owned()),
        };
        let kind = match merged {
            Some(merged) => FormKind::Merged(merged),
            None => FormKind::Joined(Joined::of(statement, shape, table)?),
        };
        Ok(Self { kind, owner: owner(statement, shape, table), finds_one })
    }

    /// Its SQL.
    pub fn sql(&self) -> SqlStr {
        match &self.kind {
            FormKind::Joined(joined) => joined.sql.clone(),
            FormKind::Merged(merged) => merged.sql(),
        }
    }

    /// The values of an event, or `None` when a value is not exact in the type of its column.
    pub fn row(&self, values: &[Value]) -> Option<Row> {
        match &self.kind {
            FormKind::Joined(joined) => joined.row(values),
            FormKind::Merged(merged) => merged.row(values),
        }
    }

    /// Whether events of one stream can follow each other in one set.
    pub fn keeps_order(&self) -> bool {
        match &self.kind {
            FormKind::Joined(joined) => !joined.apart,
            FormKind::Merged(_) => true,
        }
    }

    /// Statements with the same number can be one set, whatever handlers they are of.
    pub fn merges_as(&self) -> Option<usize> {
        match &self.kind {
            FormKind::Joined(_) => None,
            FormKind::Merged(merged) => Some(merged.number()),
        }
    }

    /// How many of the rows, from the first on, can be one set; as few rows as have the same effect.
    pub fn gather(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        match &self.kind {
            FormKind::Joined(joined) => joined.gather(rows),
            FormKind::Merged(merged) => merged.gather(rows),
        }
    }
}

/// The shape of a statement and the table that it is for, or why it cannot run as a set.
pub(crate) fn batchable<'s>(
    statement: &'s Statement,
    tables: &'s HashMap<String, TableInfo>,
) -> Result<(&'s Shape, &'s TableInfo), String> {
    let shape = statement.shape.as_ref().map_err(Clone::clone)?;
    let table = tables
        .get(&shape.table)
        .ok_or_else(|| format!("{} is no table of this projection", shape.table))?;
    match &table.has_trigger_or_foreign_key {
        Some(reason) => Err(reason.clone()),
        None => Ok((shape, table)),
    }
}

/// A statement with its parameters replaced by a table of values.
#[derive(Debug, Clone)]
struct Joined {
    /// With one parameter: the rows, as JSON.
    sql: SqlStr,
    cells: Vec<Cell>,
    /// Whether rows with the same key must go into different sets. Otherwise MySQL takes the rows in
    /// their order.
    apart: bool,
}

/// A column of the table of values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    parameter: usize,
    kind: CellKind,
    /// Whether it tells which row is changed.
    key: Option<Padding>,
}

impl Joined {
    fn of(statement: &Statement, shape: &Shape, table: &TableInfo) -> Result<Self, String> {
        let mut writer = Writer { statement, shape, table, cells: Vec::new() };
        let (body, apart) = match &shape.action {
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
        Ok(Self { sql, cells, apart })
    }

    fn row(&self, values: &[Value]) -> Option<Row> {
        let encode = |cell: &Cell| cell.kind.encode(values.get(cell.parameter)?);
        self.cells.iter().map(encode).collect()
    }

    fn gather(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        let mut seen = HashSet::new();
        let fresh = rows.iter().take_while(|row| !self.apart || seen.insert(self.key(row)));
        let gathered: Vec<Row> = fresh.map(|row| (*row).clone()).collect();
        let count = gathered.len();
        (gathered, count)
    }

    fn key(&self, row: &Row) -> Vec<String> {
        let cells = self.cells.iter().zip(row);
        cells.filter_map(|(cell, value)| Some(key_text(cell.key?, value))).collect()
    }
}

/// A key as it compares.
pub(crate) fn key_text(padding: Padding, value: &Json) -> String {
    match (padding, value) {
        (Padding::Spaces, Json::String(text)) => format!("\"{}", text.trim_end_matches(' ')),
        (Padding::None, Json::String(text)) => format!("\"{text}"),
        (_, other) => other.to_string(),
    }
}

/// Stands for the table of values until its columns are known.
const VALUES: &str = "\u{0}";

/// The table of values. A value that cannot be read fails the statement instead of being NULL.
fn values(cells: &[Cell]) -> String {
    if cells.is_empty() {
        // As many rows as there are events.
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

/// Writes one form.
struct Writer<'w> {
    statement: &'w Statement,
    shape: &'w Shape,
    table: &'w TableInfo,
    cells: Vec<Cell>,
}

/// Where a parameter stands.
#[derive(Clone, Copy)]
enum Place<'p> {
    /// Alone, as the new value of a column.
    Assigned(&'p Kind),
    /// As something added to a column.
    Added(&'p Kind),
    /// Compared with a column.
    Compared(&'p Kind),
    /// Somewhere else.
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
                return Err(format!("it changes {column}, which tells rows apart"));
            }
        }
        for (index, (_, term)) in assignments.iter().enumerate() {
            let before = &assignments[..index];
            // An UPDATE of one table assigns from left to right; one with a join does not.
            if let Some((column, _)) = before.iter().find(|(column, _)| term.mentions(column)) {
                return Err(format!("it uses {column} after it has assigned it"));
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
            let reason = "its WHERE has no column = :parameter whose values can be told apart: a key \
                          needs COLLATE utf8mb4_0900_bin, or an integer or a date";
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
                        _ => return Err("it compares something else than a column".to_owned()),
                    };
                    format!("{left} {op} {right}")
                }
            });
        }
        Ok(parts.join(" AND "))
    }

    /// What a column is compared with.
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
            kind.ok_or_else(|| format!("the type of {parameter} is not known where it stands"))?;
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

/// What the rows that a statement changes belong to; the stream, if they are found by both.
fn owner(statement: &Statement, shape: &Shape, table: &TableInfo) -> Option<Owner> {
    let owns = |column: &String, term: &Term| {
        let exact =
            table.columns.get(column).is_some_and(|column| column.kind.exact_key().is_some());
        let Term::Parameter(index) = term else { return None };
        match statement.parameters[*index].source {
            Source::StreamId if exact => Some(Owner::Stream(column.clone())),
            Source::EventId if exact => Some(Owner::Event),
            _ => None,
        }
    };
    let owners: Vec<Owner> = match &shape.action {
        Action::Insert { cells, .. } => cells
            .iter()
            .filter(|(column, _)| table.primary.contains(column))
            .filter_map(|(column, term)| owns(column, term))
            .collect(),
        Action::Update { conditions, .. } | Action::Delete { conditions } => conditions
            .iter()
            .filter_map(|condition| match condition {
                Condition::Compare(Term::Column(column), "=", term)
                | Condition::Compare(term, "=", Term::Column(column)) => owns(column, term),
                _ => None,
            })
            .collect(),
    };
    let stream = owners.iter().find(|owner| matches!(owner, Owner::Stream(_)));
    stream.or(owners.first()).cloned()
}

/// Whether the conditions find at most one row.
fn keys_cover(shape: &Shape, primary: &std::collections::BTreeSet<String>) -> bool {
    let (Action::Update { conditions, .. } | Action::Delete { conditions }) = &shape.action else {
        return false;
    };
    let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
    !primary.is_empty() && primary.iter().all(|column| keys.contains(&column))
}

pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
