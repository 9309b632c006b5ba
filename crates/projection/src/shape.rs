//! The effect of a batchable statement.
//!
//! A batchable statement can run once for many events. If [`Shape`] cannot express a statement (because of
//! a subquery, a join, an unknown function, …), the statement runs once for each event, and `projector check`
//! shows the reason.

mod read;

use std::fmt;

pub(crate) use read::shape;

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
        /// The columns with their values.
        cells: Vec<(String, Term)>,
        /// The assignments of `ON DUPLICATE KEY UPDATE`.
        on_duplicate: Vec<(String, Term)>,
    },
    /// `UPDATE … WHERE …`
    Update {
        /// The assignments of `SET`.
        assignments: Vec<(String, Term)>,
        /// The conditions of `WHERE`. A row must satisfy all of them.
        conditions: Vec<Condition>,
    },
    /// `DELETE FROM … WHERE …`
    Delete {
        /// The conditions of `WHERE`. A row must satisfy all of them.
        conditions: Vec<Condition>,
    },
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// The parameter with this index in the statement's parameters.
    Parameter(usize),
    /// A column of the table.
    Column(String),
    /// A number, a string or NULL, as SQL text.
    Literal(String),
    /// `a + b`, `a - b`, `a * b`
    Arithmetic(Box<Term>, char, Box<Term>),
    /// A call of one of `FUNCTIONS`.
    Call(&'static str, Vec<Term>),
}

/// One of the conditions that `AND` joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// A comparison.
    Compare(Term, &'static str, Term),
    /// `column IS NULL` if the flag is false, `column IS NOT NULL` if it is true.
    IsNull(String, bool),
}

impl Term {
    /// Whether the expression mentions any column of the table.
    pub fn has_column(&self) -> bool {
        self.any_column(&|_| true)
    }

    /// Whether the expression mentions this column.
    pub fn mentions(&self, column: &str) -> bool {
        self.any_column(&|name| name == column)
    }

    fn any_column(&self, wanted: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Column(name) => wanted(name),
            Self::Parameter(_) | Self::Literal(_) => false,
            Self::Arithmetic(left, _, right) => left.any_column(wanted) || right.any_column(wanted),
            Self::Call(_, arguments) => arguments.iter().any(|term| term.any_column(wanted)),
        }
    }

    /// The sign and the addend, if the expression is exactly `column + addend` or `column - addend` with a
    /// parameter or literal.
    pub fn addend(&self, column: &str) -> Option<(char, &Self)> {
        match self {
            Self::Arithmetic(left, sign @ ('+' | '-'), right) => match (&**left, &**right) {
                (Self::Column(name), addend @ (Self::Parameter(_) | Self::Literal(_)))
                    if name == column =>
                {
                    Some((*sign, addend))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

impl Condition {
    /// The column, if the condition is exactly `column = :parameter`.
    pub fn key(&self) -> Option<&String> {
        match self {
            Self::Compare(Term::Column(column), "=", Term::Parameter(_))
            | Self::Compare(Term::Parameter(_), "=", Term::Column(column)) => Some(column),
            _ => None,
        }
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
