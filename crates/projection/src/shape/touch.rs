//! Which rows a statement reads and changes, as far as keys tell. This holds for statements that are not
//! batchable as well.

use std::convert::Infallible;
use std::ops::ControlFlow;

use sqlparser::ast::{
    AssignmentTarget, BinaryOperator, Expr, FromTable, OnInsert, Query, SelectItem, SetExpr,
    Spanned, Statement as Parsed, TableFactor, TableObject, TableWithJoins, Visit, Visitor,
};

use super::{LineColumn, conjuncts};

/// The rows of one table that a statement reads or changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// The table; `None` if the statement is too complex to tell.
    pub table: Option<String>,
    /// The columns that equal a parameter in each of these rows, with the index of the parameter.
    pub pins: Vec<(String, usize)>,
    /// Where the table stands in its file.
    pub place: LineColumn,
    /// Whether they are new rows.
    pub is_insert: bool,
    /// Whether new rows may change or replace others that have the same key.
    pub overwrites: bool,
}

/// The rows that a statement touches. The first element is those that it changes.
pub(crate) fn touches(parsed: &Parsed, place: LineColumn) -> Vec<Touch> {
    let changed = match parsed {
        Parsed::Insert(insert) => {
            let TableObject::TableName(name) = &insert.table else { return vec![unknown(place)] };
            let columns = insert.columns.iter().map(|name| last(&name.to_string()));
            let mut pins = Vec::new();
            match insert.source.as_deref().map(|query| &*query.body) {
                Some(SetExpr::Values(values)) => {
                    if let [row] = &*values.rows {
                        pins = pinned(columns.zip(row.content.iter().map(Some)));
                    }
                }
                Some(SetExpr::Select(select)) => {
                    pins = pinned(columns.zip(select.projection.iter().map(selected)));
                }
                None => {
                    let assigned = insert.assignments.iter().filter_map(|one| match &one.target {
                        AssignmentTarget::ColumnName(name) => {
                            Some((last(&name.to_string()), Some(&one.value)))
                        }
                        AssignmentTarget::Tuple(_) => None,
                    });
                    pins = pinned(assigned);
                }
                Some(_) => {}
            }
            let place = place_of(name, place);
            let overwrites = insert.on.is_some() || insert.replace_into;
            Touch { table: Some(last(&name.to_string())), pins, place, is_insert: true, overwrites }
        }
        Parsed::Update(update) if update.from.is_none() => {
            of_rows(&update.table, update.selection.as_ref(), place)
        }
        Parsed::Delete(delete) if delete.tables.is_empty() && delete.using.is_none() => {
            let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
            match &**from {
                [table] => of_rows(table, delete.selection.as_ref(), place),
                _ => unknown(place),
            }
        }
        _ => unknown(place),
    };
    let mut changed = changed;
    // A row whose key changes may become a row of another stream.
    let assigned = assigned(parsed);
    changed.pins.retain(|(column, _)| !assigned.contains(column));
    let mut reads = Reads { place, found: vec![changed] };
    let ControlFlow::Continue(()) = parsed.visit(&mut reads);
    reads.found
}

/// The columns of existing rows that a statement assigns.
fn assigned(parsed: &Parsed) -> Vec<String> {
    let assignments = match parsed {
        Parsed::Update(update) => &*update.assignments,
        Parsed::Insert(insert) => match &insert.on {
            Some(OnInsert::DuplicateKeyUpdate(assignments)) => &**assignments,
            _ => &[],
        },
        _ => &[],
    };
    let names = assignments.iter().flat_map(|assignment| match &assignment.target {
        AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
        AssignmentTarget::Tuple(names) => names,
    });
    names.map(|name| last(&name.to_string()).to_lowercase()).collect()
}

struct Reads {
    place: LineColumn,
    found: Vec<Touch>,
}

impl Visitor for Reads {
    type Break = Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Infallible> {
        match &*query.body {
            SetExpr::Values(_) => {}
            SetExpr::Select(select) => {
                for table in &select.from {
                    let derives = |one: &TableFactor| {
                        matches!(one, TableFactor::JsonTable { .. } | TableFactor::Derived { .. })
                    };
                    if !derives(&table.relation) || !table.joins.is_empty() {
                        self.found.push(of_rows(table, select.selection.as_ref(), self.place));
                    }
                }
            }
            _ => self.found.push(unknown(self.place)),
        }
        ControlFlow::Continue(())
    }
}

fn unknown(place: LineColumn) -> Touch {
    Touch { table: None, pins: Vec::new(), place, is_insert: false, overwrites: false }
}

/// The rows of one table that a WHERE selects.
fn of_rows(table: &TableWithJoins, selection: Option<&Expr>, place: LineColumn) -> Touch {
    let place = place_of(table, place);
    let TableFactor::Table { name, .. } = &table.relation else { return unknown(place) };
    if !table.joins.is_empty() {
        return unknown(place);
    }
    let mut pins = Vec::new();
    for expr in conjuncts(selection) {
        if let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = expr {
            for (column, value) in [(left, right), (right, left)] {
                if let (Some(column), Some(parameter)) = (column_name(column), parameter(value)) {
                    pins.push((column, parameter));
                }
            }
        }
    }
    Touch { table: Some(last(&name.to_string())), pins, place, is_insert: false, overwrites: false }
}

fn pinned<'e>(cells: impl Iterator<Item = (String, Option<&'e Expr>)>) -> Vec<(String, usize)> {
    cells.filter_map(|(column, value)| Some((column.to_lowercase(), parameter(value?)?))).collect()
}

fn selected(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

fn parameter(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Nested(inner) => parameter(inner),
        Expr::Identifier(name) => name.value.strip_prefix('?')?.parse().ok(),
        _ => None,
    }
}

fn column_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => column_name(inner),
        Expr::Identifier(name) if !name.value.starts_with('?') => Some(name.value.to_lowercase()),
        Expr::CompoundIdentifier(names) => names.last().map(|name| name.value.to_lowercase()),
        _ => None,
    }
}

/// The last part of a name, without backticks.
fn last(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).replace('`', "")
}

fn place_of(part: &impl Spanned, statement: LineColumn) -> LineColumn {
    let start = part.span().start;
    if start.line == 0 { statement } else { LineColumn { line: start.line, column: start.column } }
}
