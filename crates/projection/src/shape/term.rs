//! Expressions and conditions.

use super::functions::Function;

/// An expression. Its result depends on the event and on the row alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// The parameter with this index in the statement's parameters.
    Parameter(usize),
    /// A column of the table.
    Column(String),
    /// A column of the rows that a subquery or a SELECT reads; if they have none with this name, a column of
    /// the table.
    Found(String),
    /// A subquery.
    Subquery(Box<Subquery>),
    /// The value that the INSERT would store in this column: `VALUES(column)`, or `new.column`.
    New(String),
    /// A number, a string or NULL, as SQL text.
    Literal(String),
    /// A unit of time, such as `DAY`.
    Unit(&'static str),
    /// An operator between two operands.
    Binary(Box<Term>, &'static str, Box<Term>),
    /// `NOT a`
    Not(Box<Term>),
    /// `a IS NULL` if the flag is false, `a IS NOT NULL` if it is true.
    IsNull(Box<Term>, bool),
    /// A call of a known function.
    Call(&'static Function, Vec<Term>),
    /// `CASE operand WHEN … THEN … ELSE … END`
    Case {
        /// What is compared with each WHEN; `None` if each WHEN is a condition.
        operand: Option<Box<Term>>,
        /// The pairs of WHEN and THEN.
        arms: Vec<(Term, Term)>,
        /// The result if no WHEN matches.
        otherwise: Option<Box<Term>>,
    },
    /// `CAST(a AS type)`
    Cast(Box<Term>, Cast),
    /// `INTERVAL a unit`
    Interval(Box<Term>, &'static str),
}

/// `(SELECT value FROM table WHERE condition)`, or `EXISTS (…)` if there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subquery {
    /// The table that it reads.
    pub table: String,
    /// What it is called within the subquery.
    pub alias: String,
    /// The value.
    pub value: Option<Term>,
    /// The conditions. A row must satisfy all of them.
    pub conditions: Vec<Condition>,
}

/// The type in `CAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cast {
    /// `SIGNED`
    Signed,
    /// `UNSIGNED`
    Unsigned,
    /// `DECIMAL(digits, scale)`
    Decimal(u64, u64),
    /// `CHAR`, with its length.
    Char(Option<u64>),
    /// `DATE`
    Date,
    /// `DATETIME`, with the number of digits behind the seconds.
    DateTime(u64),
    /// `JSON`
    Json,
}

/// One of the conditions that `AND` joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// A comparison.
    Compare(Term, &'static str, Term),
    /// `column IS NULL` if the flag is false, `column IS NOT NULL` if it is true.
    IsNull(String, bool),
    /// Any other condition.
    Other(Term),
}

impl Term {
    /// Whether the expression mentions any column of the table.
    pub fn has_column(&self) -> bool {
        self.any(&|term| matches!(term, Self::Column(_)))
    }

    /// Whether the expression mentions this column.
    pub fn mentions(&self, column: &str) -> bool {
        self.any(&|term| matches!(term, Self::Column(name) | Self::Found(name) if name == column))
    }

    /// Whether the expression aggregates rows.
    pub(super) fn aggregates(&self) -> bool {
        self.any(&|term| matches!(term, Self::Call(function, _) if function.aggregates))
    }

    /// Whether the expression mentions any column of the rows that a SELECT reads.
    pub(super) fn has_found(&self) -> bool {
        self.any(&|term| matches!(term, Self::Found(_)))
    }

    /// Whether the expression mentions any parameter.
    pub fn has_parameter(&self) -> bool {
        self.any(&|term| matches!(term, Self::Parameter(_)))
    }

    fn any(&self, wanted: &dyn Fn(&Self) -> bool) -> bool {
        wanted(self) || self.operands().iter().any(|term| term.any(wanted))
    }

    /// The expressions that this one consists of.
    fn operands(&self) -> Vec<&Self> {
        match self {
            Self::Parameter(_)
            | Self::Column(_)
            | Self::Found(_)
            | Self::New(_)
            | Self::Literal(_)
            | Self::Unit(_) => Vec::new(),
            Self::Binary(left, _, right) => vec![left, right],
            Self::Not(inner)
            | Self::IsNull(inner, _)
            | Self::Cast(inner, _)
            | Self::Interval(inner, _) => vec![inner],
            Self::Call(_, arguments) => arguments.iter().collect(),
            Self::Subquery(subquery) => {
                let conditions = subquery.conditions.iter().flat_map(Condition::operands);
                subquery.value.iter().chain(conditions).collect()
            }
            Self::Case { operand, arms, otherwise } => {
                let arms = arms.iter().flat_map(|(when, then)| [when, then]);
                operand.as_deref().into_iter().chain(arms).chain(otherwise.as_deref()).collect()
            }
        }
    }

    /// The sign and the addend, if the expression is exactly `column + addend` or `column - addend` with a
    /// parameter or literal.
    pub fn addend(&self, column: &str) -> Option<(char, &Self)> {
        let Self::Binary(left, sign @ ("+" | "-"), right) = self else { return None };
        match (&**left, &**right) {
            (Self::Column(name), addend @ (Self::Parameter(_) | Self::Literal(_)))
                if name == column =>
            {
                Some((if *sign == "+" { '+' } else { '-' }, addend))
            }
            _ => None,
        }
    }
}

impl Condition {
    fn operands(&self) -> Vec<&Term> {
        match self {
            Self::Compare(left, _, right) => vec![left, right],
            Self::IsNull(..) => Vec::new(),
            Self::Other(term) => vec![term],
        }
    }

    /// The column, if the condition is exactly `column = :parameter`.
    pub fn key(&self) -> Option<&String> {
        match self {
            Self::Compare(Term::Column(column), "=", Term::Parameter(_))
            | Self::Compare(Term::Parameter(_), "=", Term::Column(column)) => Some(column),
            _ => None,
        }
    }
}
