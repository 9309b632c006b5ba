//! Writes expressions for sets, and checks that both ways of execution give them the same result.
//!
//! A parameter becomes a column of the table of values. MySQL treats both alike only if their types agree, so
//! an expression is refused where MySQL would convert a parameter to another type.

use projection::{Class, NotBatchable, Term};

use super::cell::{CellKind, natural};
use super::cells::{Accepts, Cell};
use super::columns::Kind;
use super::row::quoted;
use super::writer::Writer;

/// The SQL of an expression and the class of its type.
pub(super) type Typed = (String, Class);

impl Writer<'_> {
    /// An expression. `want` is the class that its place requires; a parameter takes it.
    pub(super) fn typed(
        &mut self,
        term: &Term,
        want: Option<Class>,
    ) -> Result<Typed, NotBatchable> {
        Ok(match term {
            Term::Parameter(index) => self.parameter(*index, want)?,
            Term::Column(name) => (self.column(name)?, self.class(name)?),
            Term::Found(name) => self.found_class(name)?,
            Term::Subquery(subquery) => self.subquery(subquery)?,
            Term::New(name) => (format!("VALUES({})", quoted(name)), self.class(name)?),
            Term::Literal(literal) => (literal.clone(), class_of_literal(literal)),
            Term::Unit(unit) => ((*unit).to_owned(), Class::Unit),
            Term::Not(inner) => (format!("(NOT {})", self.condition(inner)?), Class::Integer),
            Term::IsNull(inner, negated) => {
                let not = if *negated { " NOT" } else { "" };
                (format!("({} IS{not} NULL)", self.tested(inner)?), Class::Integer)
            }
            Term::Binary(left, op, right) => self.binary(left, op, right)?,
            Term::Call(function, arguments) => self.call(function, arguments, want)?,
            Term::Case { operand, arms, otherwise } => {
                self.case(operand.as_deref(), arms, otherwise.as_deref(), want)?
            }
            Term::Cast(inner, cast) => self.cast(inner, *cast)?,
            Term::Interval(number, unit) => (
                format!("INTERVAL {} {unit}", self.fitting(number, Class::Integer)?),
                Class::Interval,
            ),
        })
    }

    /// A parameter in an expression, where no single column decides its type.
    pub(super) fn parameter(
        &mut self,
        index: usize,
        want: Option<Class>,
    ) -> Result<Typed, NotBatchable> {
        let parameter = &self.statement.parameters[index];
        if let Some(kind) = natural(parameter.source) {
            let class = match kind {
                CellKind::Integer => Class::Integer,
                CellKind::Time { .. } => Class::Temporal,
                _ => Class::Text,
            };
            return Ok((self.cell(Cell::exact(index, kind, None)), class));
        }
        let exact = |kind| Cell::exact(index, kind, None);
        let (cell, class) = match want {
            Some(Class::Integer) => (exact(CellKind::Integer), Class::Integer),
            Some(Class::Number) => (Cell::number(index), Class::Number),
            Some(Class::Text | Class::Printed | Class::Element) => {
                (Cell::text(index, Accepts::Texts), Class::Text)
            }
            Some(Class::Temporal) => (Cell::text(index, Accepts::Moments), Class::Temporal),
            Some(Class::Json) => (exact(CellKind::Json), Class::Json),
            _ => {
                let reason = format!(
                    "the type of {parameter} does not follow from its place: write CAST({parameter} AS …)"
                );
                return Err(NotBatchable { place: self.statement.places[index], reason });
            }
        };
        Ok((self.cell(cell), class))
    }

    /// The class of a column in an expression.
    pub(super) fn class(&self, name: &str) -> Result<Class, NotBatchable> {
        self.class_of(name, self.kind(name)?)
    }

    pub(super) fn class_of(&self, name: &str, kind: &Kind) -> Result<Class, NotBatchable> {
        Ok(match kind {
            Kind::Integer { .. } => Class::Integer,
            Kind::Decimal { .. } => Class::Number,
            // With a parameter of another collation, MySQL takes that of the column; a column of the table
            // of values counts as much as the column itself, except beside `_bin`.
            Kind::Text { charset, collation, .. } => {
                let known = collation == "utf8mb4_0900_ai_ci" || collation.ends_with("_bin");
                if !(self.lenient || charset == "utf8mb4" && known) {
                    return Err(self.because(format!("{name} has the collation {collation}")));
                }
                Class::Text
            }
            Kind::Json => Class::Json,
            Kind::Date | Kind::Time { .. } | Kind::Timestamp { .. } => Class::Temporal,
            Kind::Binary { .. } => Class::Binary,
            _ if self.lenient => Class::Binary,
            kind => return Err(self.because(format!("{name} has the type {}", type_of(kind)))),
        })
    }

    /// An expression that must have a certain class.
    pub(super) fn fitting(&mut self, term: &Term, want: Class) -> Result<String, NotBatchable> {
        Ok(self.fitted(term, want)?.0)
    }

    pub(super) fn fitted(&mut self, term: &Term, want: Class) -> Result<Typed, NotBatchable> {
        let (sql, class) = self.typed(term, Some(want))?;
        let fits = match want {
            Class::Number => matches!(class, Class::Integer | Class::Number),
            Class::Text => matches!(class, Class::Text | Class::JsonText),
            Class::Printed => matches!(class, Class::Text | Class::JsonText | Class::Integer),
            Class::Element => {
                matches!(class, Class::Text | Class::JsonText | Class::Integer | Class::Json)
            }
            other => class == other,
        };
        let is_value = !matches!(want, Class::Unit | Class::Interval);
        if fits || class == Class::Null || (is_value && !term.has_parameter()) {
            return Ok((sql, class));
        }
        Err(self.because(format!("MySQL would convert {} to {}", named(class), named(want))))
    }

    pub(super) fn condition(&mut self, term: &Term) -> Result<String, NotBatchable> {
        self.fitting(term, Class::Integer)
    }

    /// The operand of `IS NULL`.
    pub(super) fn tested(&mut self, term: &Term) -> Result<String, NotBatchable> {
        match term {
            Term::Column(name) => self.column(name),
            Term::Found(name) => Ok(self.found_class(name)?.0),
            Term::Parameter(index) => Ok(self.cell(Cell::presence(*index))),
            other => Ok(self.typed(other, None)?.0),
        }
    }

    pub(super) fn binary(
        &mut self,
        left: &Term,
        op: &str,
        right: &Term,
    ) -> Result<Typed, NotBatchable> {
        let infix = |left: String, right: String| format!("({left} {op} {right})");
        Ok(match op {
            "AND" | "OR" => (infix(self.condition(left)?, self.condition(right)?), Class::Integer),
            "LIKE" => {
                let (sql, _) = self.compared_terms(left, right)?;
                let [left, right] = sql;
                (infix(left, right), Class::Integer)
            }
            "+" | "-" if matches!(right, Term::Interval(..)) => {
                let left = self.fitting(left, Class::Temporal)?;
                (infix(left, self.fitting(right, Class::Interval)?), Class::Temporal)
            }
            "+" | "-" | "*" => self.arithmetic(left, op, right)?,
            "/" => {
                // The digits of a quotient depend on those of the dividend.
                let want = |term: &Term| {
                    if term.has_parameter() { Class::Integer } else { Class::Number }
                };
                let left = self.fitting(left, want(left))?;
                (infix(left, self.fitting(right, want(right))?), Class::Number)
            }
            "DIV" | "%" => {
                let left = self.fitting(left, Class::Integer)?;
                (infix(left, self.fitting(right, Class::Integer)?), Class::Integer)
            }
            _ => {
                let [left, right] = match (left, right) {
                    (Term::Column(column), Term::Parameter(index)) => {
                        [self.column(column)?, self.compared(column, *index, None)?]
                    }
                    (Term::Parameter(index), Term::Column(column)) => {
                        [self.compared(column, *index, None)?, self.column(column)?]
                    }
                    _ => self.compared_terms(left, right)?.0,
                };
                (infix(left, right), Class::Integer)
            }
        })
    }

    pub(super) fn arithmetic(
        &mut self,
        left: &Term,
        op: &str,
        right: &Term,
    ) -> Result<Typed, NotBatchable> {
        let mut operand = |term: &Term, other: &Term| {
            if let (Term::Parameter(index), Term::Column(column)) = (term, other) {
                return self.added(column, *index);
            }
            let (sql, class) = self.typed(term, Some(Class::Number))?;
            match class {
                Class::Integer | Class::Number | Class::Null => Ok((sql, class)),
                _ if self.lenient => Ok((sql, Class::Number)),
                other => Err(self.because(format!("it calculates with {}", named(other)))),
            }
        };
        let (left_sql, left_class) = operand(left, right)?;
        let (right_sql, right_class) = operand(right, left)?;
        let whole = left_class == Class::Integer && right_class == Class::Integer;
        let class = if whole { Class::Integer } else { Class::Number };
        Ok((format!("({left_sql} {op} {right_sql})"), class))
    }

    /// Two expressions that are compared with each other.
    pub(super) fn compared_terms(
        &mut self,
        left: &Term,
        right: &Term,
    ) -> Result<([String; 2], Class), NotBatchable> {
        let lenient = self.lenient;
        self.lenient |= !left.has_parameter() && !right.has_parameter();
        let (sql, class) = self.comparable(&[left, right])?;
        self.lenient = lenient;
        let [left, right] = <[String; 2]>::try_from(sql).unwrap_or_default();
        Ok(([left, right], class))
    }

    pub(super) fn comparable(
        &mut self,
        terms: &[&Term],
    ) -> Result<(Vec<String>, Class), NotBatchable> {
        match self.same(terms, None)? {
            (_, Class::Json) if !self.lenient => Err(self.because("it compares JSON documents")),
            found => Ok(found),
        }
    }
}

fn class_of_literal(literal: &str) -> Class {
    match literal.as_bytes().first() {
        Some(b'\'' | b'"') => Class::Text,
        Some(b'N') => Class::Null,
        _ if literal.contains('.') || literal.len() > 18 => Class::Number,
        _ => Class::Integer,
    }
}

pub(super) fn named(class: Class) -> &'static str {
    match class {
        Class::Null => "NULL",
        Class::Integer => "an integer",
        Class::Number => "a number with a fraction",
        Class::Text | Class::Printed => "a text",
        Class::JsonText => "a text of a JSON document",
        Class::Temporal => "a date or time",
        Class::Json => "a JSON document",
        Class::Binary => "bytes",
        Class::Element => "a part of a JSON document",
        Class::Unit => "a unit",
        Class::Interval => "an interval",
    }
}

fn type_of(kind: &Kind) -> &str {
    match kind {
        Kind::Duration { .. } => "TIME",
        Kind::Year => "YEAR",
        Kind::Float => "FLOAT or DOUBLE",
        Kind::Bit => "BIT",
        Kind::Enum(_) => "ENUM",
        Kind::Set(_) => "SET",
        Kind::Other(other) => other,
        _ => "another",
    }
}
