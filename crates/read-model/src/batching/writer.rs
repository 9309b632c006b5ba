//! Writes the SQL of statements that are joined to a table of values.

use std::collections::HashMap;
use std::fmt::Write;

use projection::{
    Assignment, Condition, LineColumn, NotBatchable, RowSource, Shape, Statement, Term,
};

use super::cell::CellKind;
use super::cells::Cell;
use super::columns::{Kind, TableInfo};
use super::joined::VALUES;
use super::row::{because, quoted};
use super::subqueries::Found;

/// Writes the SQL of one form.
pub(super) struct Writer<'w> {
    pub(super) statement: &'w Statement,
    pub(super) shape: &'w Shape,
    pub(super) tables: &'w HashMap<String, TableInfo>,
    pub(super) table: &'w TableInfo,
    pub(super) cells: Vec<Cell>,
    pub(super) pins: Vec<(String, usize)>,
    pub(super) reads: Vec<(String, Vec<(String, usize)>)>,
    /// The rows that the current subquery or SELECT reads.
    pub(super) found: Option<Found<'w>>,
    /// The part of the statement that is being written.
    pub(super) here: LineColumn,
    /// The columns that the statement has assigned, with their new values.
    pub(super) changed: HashMap<String, String>,
    /// Whether the statement has IGNORE.
    pub(super) ignores: bool,
    /// Whether the expression has no parameter. Then it is the same in both ways of execution.
    pub(super) lenient: bool,
}

impl<'w> Writer<'w> {
    pub(super) fn insert(
        &mut self,
        verb: &str,
        source: Option<&'w RowSource>,
        cells: &[Assignment],
        on_duplicate: &[Assignment],
    ) -> Result<String, NotBatchable> {
        let from = match source {
            Some(source) => self.source(source, verb != "INSERT" || !on_duplicate.is_empty())?,
            None => String::new(),
        };
        let columns: Vec<String> = cells.iter().map(|cell| quoted(&cell.column)).collect();
        let mut values = Vec::new();
        for Assignment { column, value, place } in cells {
            self.here = *place;
            if value.has_column() {
                return Err(
                    self.because(format!("the value of {column} depends on another column"))
                );
            }
            values.push(self.assigned(column, value)?.0);
            if matches!(value, Term::Parameter(_))
                && self.kind(column)?.exact_key().is_some()
                && self.table.distinguishes(column)
            {
                self.pin(column, &values[values.len() - 1]);
            }
        }
        let table = quoted(&self.shape.table);
        let mut sql = format!(
            "{verb} INTO {table} ({}) SELECT {} FROM {VALUES}{from}",
            columns.join(", "),
            values.join(", ")
        );
        self.found = None;
        for (index, Assignment { column, value, place }) in on_duplicate.iter().enumerate() {
            self.here = *place;
            let (value, _) = self.assigned(column, value)?;
            let separator = if index == 0 { " ON DUPLICATE KEY UPDATE" } else { "," };
            write!(sql, "{separator} {table}.{} = {value}", quoted(column))
                .expect("writing to a String cannot fail");
        }
        Ok(sql)
    }

    pub(super) fn update(
        &mut self,
        assignments: &[Assignment],
        conditions: &[Condition],
    ) -> Result<String, NotBatchable> {
        let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
        for Assignment { column, place, .. } in assignments {
            self.here = *place;
            if keys.contains(&column) || self.table.unique.contains(column) {
                return Err(self.because(format!(
                    "it changes {column}, which is part of a unique key or of its WHERE"
                )));
            }
        }
        let mut sets = Vec::new();
        for (index, Assignment { column, value, place }) in assignments.iter().enumerate() {
            self.here = *place;
            let (value, class) = self.assigned(column, value)?;
            sets.push(format!("{}.{} = {value}", quoted(&self.shape.table), quoted(column)));
            if let Some(later) =
                assignments[index + 1..].iter().find(|it| it.value.mentions(column))
            {
                self.here = later.place;
                let stored = self.stored(column, &value, class)?;
                self.changed.insert(column.clone(), stored);
            }
        }
        self.changed.clear();
        self.here = because(self.statement, "").place;
        let wheres = self.conditions(conditions)?;
        if self.pins.is_empty() {
            return Err(self.because(
                "its WHERE has no column = :parameter on a column whose values compare exactly: use \
                 COLLATE utf8mb4_0900_bin, an integer, a date or DATETIME(6)",
            ));
        }
        Ok(format!(
            "UPDATE {} JOIN {VALUES} SET {} WHERE {wheres}",
            quoted(&self.shape.table),
            sets.join(", ")
        ))
    }

    pub(super) fn delete(&mut self, conditions: &[Condition]) -> Result<String, NotBatchable> {
        let wheres = self.conditions(conditions)?;
        let table = quoted(&self.shape.table);
        Ok(format!("DELETE {table} FROM {table} JOIN {VALUES} WHERE {wheres}"))
    }

    pub(super) fn conditions(&mut self, conditions: &[Condition]) -> Result<String, NotBatchable> {
        let mut parts = Vec::new();
        for condition in conditions {
            parts.push(match condition {
                Condition::IsNull(column, negated) => {
                    let not = if *negated { " NOT" } else { "" };
                    format!("{} IS{not} NULL", self.column(column)?)
                }
                Condition::Compare(Term::Column(column), op, Term::Parameter(index)) => {
                    format!("{} {op} {}", self.column(column)?, self.key(column, op, *index)?)
                }
                Condition::Compare(Term::Parameter(index), op, Term::Column(column)) => {
                    format!("{} {op} {}", self.key(column, op, *index)?, self.column(column)?)
                }
                Condition::Compare(Term::Found(column), op, Term::Parameter(index)) => {
                    let (sql, kind) = self.found(column)?;
                    format!("{sql} {op} {}", self.key_of(column, &kind, op, *index)?)
                }
                Condition::Compare(Term::Parameter(index), op, Term::Found(column)) => {
                    let (sql, kind) = self.found(column)?;
                    format!("{} {op} {sql}", self.key_of(column, &kind, op, *index)?)
                }
                Condition::Compare(left, op, right) => {
                    let (left, right) = (Box::new(left.clone()), Box::new(right.clone()));
                    self.free(&Term::Binary(left, op, right))?.0
                }
                Condition::Other(term) => {
                    self.lenient = !term.has_parameter();
                    let sql = self.condition(term)?;
                    self.lenient = false;
                    sql
                }
            });
        }
        Ok(parts.join(" AND "))
    }

    /// The parameter that a column of WHERE is compared with.
    pub(super) fn key(
        &mut self,
        column: &str,
        op: &str,
        index: usize,
    ) -> Result<String, NotBatchable> {
        let kind = self.kind(column)?;
        self.key_of(column, kind, op, index)
    }

    pub(super) fn key_of(
        &mut self,
        column: &str,
        kind: &Kind,
        op: &str,
        index: usize,
    ) -> Result<String, NotBatchable> {
        let key = kind.exact_key().filter(|_| op == "=");
        let sql = self.exact_cell(index, CellKind::of(kind), key)?;
        if key.is_some() {
            self.pin(column, &sql);
        }
        Ok(sql)
    }
}
