//! The effect of a batchable statement.
//!
//! A batchable statement can run once for many events. If [`Shape`] cannot express a statement (because of
//! a join, a window, an unknown function, …), the statement runs once for each event, and `projector check`
//! shows the reason.

mod expression;
mod functions;
mod read;
mod subquery;
mod term;
mod touch;

use std::fmt;

use sqlparser::ast::{BinaryOperator, Expr};

pub use functions::{Class, Function, Rule};
pub(crate) use read::shape;
pub use term::{Cast, Condition, Subquery, Term};
pub use touch::Touch;
pub(crate) use touch::touches;

/// The effect of a batchable statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The only table that it changes.
    pub table: String,
    /// The change of that table.
    pub action: Action,
}

/// The change that a statement makes to its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `INSERT` or `REPLACE` of one row.
    Insert {
        /// Whether the statement is `REPLACE`.
        replaces: bool,
        /// Whether it has IGNORE: errors become warnings.
        ignores: bool,
        /// The rows from which it makes one row each; `None` for one row.
        source: Option<RowSource>,
        /// The columns with their values.
        cells: Vec<Assignment>,
        /// The assignments of `ON DUPLICATE KEY UPDATE`.
        on_duplicate: Vec<Assignment>,
    },
    /// `UPDATE … WHERE …`
    Update {
        /// The assignments of `SET`.
        assignments: Vec<Assignment>,
        /// The conditions of `WHERE`. A row must satisfy all of them.
        conditions: Vec<Condition>,
    },
    /// `DELETE FROM … WHERE …`
    Delete {
        /// The conditions of `WHERE`. A row must satisfy all of them.
        conditions: Vec<Condition>,
    },
}

/// What an INSERT selects from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSource {
    /// What it is called.
    pub alias: String,
    /// The rows.
    pub rows: SourceRows,
    /// The conditions. A row must satisfy all of them.
    pub conditions: Vec<Condition>,
}

/// The rows of a [`RowSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceRows {
    /// Those of a table.
    Table(String),
    /// `JSON_TABLE(document, path COLUMNS (…))`
    Items {
        /// The document.
        document: Term,
        /// The SQL behind the document, from the comma to the closing parenthesis.
        rest: String,
        /// The names and types of the columns.
        columns: Vec<(String, Class)>,
    },
}

/// A column and its new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// In lower case.
    pub column: String,
    /// The new value.
    pub value: Term,
    /// Where the value stands in its file.
    pub place: LineColumn,
}

/// A line and a column of a file, counted from 1. Columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineColumn {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

/// Why a statement runs once for each event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotBatchable {
    /// The part of the statement that is to blame.
    pub place: LineColumn,
    /// The reason, as a sentence without full stop.
    pub reason: String,
}

impl fmt::Display for NotBatchable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.place.line, self.place.column, self.reason)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match &self.action {
            Action::Insert { replaces: true, .. } => "REPLACE",
            Action::Insert { on_duplicate, .. } if on_duplicate.is_empty() => "INSERT",
            Action::Insert { .. } => "INSERT … ON DUPLICATE KEY UPDATE",
            Action::Update { .. } => "UPDATE",
            Action::Delete { .. } => "DELETE",
        };
        write!(f, "{verb} of {}", self.table)
    }
}

/// The conditions of a WHERE, all of which a row must satisfy, in their order.
fn conjuncts(selection: Option<&Expr>) -> Vec<&Expr> {
    let mut conjuncts = Vec::new();
    let mut rest: Vec<&Expr> = selection.into_iter().collect();
    while let Some(expr) = rest.pop() {
        match expr {
            Expr::Nested(inner) => rest.push(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                rest.extend([&**right, &**left]);
            }
            other => conjuncts.push(other),
        }
    }
    conjuncts
}
