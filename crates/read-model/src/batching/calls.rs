//! Writes expressions whose type depends on their operands: calls, CASE and CAST.

use std::fmt::Write;

use projection::{Cast, Class, Function, NotBatchable, Rule, Term};

use super::cell::natural;
use super::terms::{Typed, named};
use super::writer::Writer;

impl Writer<'_> {
    /// Expressions that must have the same class.
    pub(super) fn same(
        &mut self,
        terms: &[&Term],
        want: Option<Class>,
    ) -> Result<(Vec<String>, Class), NotBatchable> {
        let mut found = Class::Null;
        let (cells, reads) = (self.cells.len(), self.reads.len());
        let literals = |class: Class, all: &[(&Term, Class)]| {
            all.iter().all(|(term, other)| *other != class || matches!(term, Term::Literal(_)))
        };
        let is_fixed = self.lenient || !terms.iter().any(|term| term.has_parameter());
        let mut all: Vec<(&Term, Class)> = Vec::new();
        let closed: Vec<&Term> = terms.iter().copied().filter(|term| !self.is_open(term)).collect();
        for term in closed {
            let (_, class) = self.typed(term, want)?;
            all.push((term, class));
            found = match (found, class) {
                (Class::Null, class) | (class, Class::Null) => class,
                (one, other) if one == other => one,
                (Class::Integer, Class::Number) | (Class::Number, Class::Integer) => Class::Number,
                (Class::JsonText, Class::Text) | (Class::Text, Class::JsonText)
                    if literals(Class::Text, &all) =>
                {
                    Class::JsonText
                }
                // Without a parameter, it is the same in both ways of execution.
                (Class::Json, _) | (_, Class::Json) if is_fixed => Class::Json,
                (one, _) if is_fixed => one,
                (one, other) => {
                    let reason = format!("it mixes {} and {}", named(one), named(other));
                    return Err(self.because(reason));
                }
            };
        }
        // This was to learn the classes only; the expressions are written below.
        self.cells.truncate(cells);
        self.reads.truncate(reads);
        if found == Class::JsonText && terms.iter().any(|term| self.is_open(term)) {
            return Err(self.because("it mixes a text of a JSON document with a parameter"));
        }
        // A number in the event may have a fraction although the literal beside it has none.
        let want = match found {
            Class::Null => want,
            Class::Integer => Some(Class::Number),
            class => Some(class),
        };
        let mut sql = Vec::new();
        for term in terms {
            let (text, class) = self.typed(term, want)?;
            if self.is_open(term) {
                found = match (found, class) {
                    (found, Class::Null) => found,
                    (Class::Number, Class::Integer) => Class::Number,
                    (_, class) => class,
                };
            }
            sql.push(text);
        }
        Ok((sql, found))
    }

    /// Whether the class of an expression depends on its place: it consists of parameters.
    pub(super) fn is_open(&self, term: &Term) -> bool {
        match term {
            Term::Parameter(index) => natural(self.statement.parameters[*index].source).is_none(),
            Term::Literal(literal) => literal == "NULL",
            Term::Call(Function { rule: Rule::Same, .. }, arguments) => {
                arguments.iter().all(|term| self.is_open(term))
            }
            Term::Call(Function { rule: Rule::If, .. }, arguments) => {
                arguments.iter().skip(1).all(|term| self.is_open(term))
            }
            _ => false,
        }
    }

    pub(super) fn call(
        &mut self,
        function: &Function,
        arguments: &[Term],
        want: Option<Class>,
    ) -> Result<Typed, NotBatchable> {
        let (sql, class) = match function.rule {
            Rule::Same => {
                let want = want.map(|want| match want {
                    Class::Printed | Class::Element => Class::Text,
                    other => other,
                });
                let all: Vec<&Term> = arguments.iter().collect();
                self.same(&all, want)?
            }
            Rule::If => {
                let [condition, results @ ..] = arguments else {
                    return Err(self.because("IF has no arguments"));
                };
                let results: Vec<&Term> = results.iter().collect();
                let mut sql = vec![self.condition(condition)?];
                let (rest, class) = self.same(&results, want)?;
                sql.extend(rest);
                (sql, class)
            }
            Rule::Fixed(classes, result) => {
                let (mut sql, mut classes_found) = (Vec::new(), Vec::new());
                for (index, argument) in arguments.iter().enumerate() {
                    let want = classes.get(index).or(classes.last()).copied();
                    let (text, class) = self.fitted(argument, want.unwrap_or(Class::Text))?;
                    sql.push(text);
                    classes_found.push(class);
                }
                let result = self.collated(function, arguments, &classes_found, result)?;
                (sql, result)
            }
        };
        Ok((format!("{}({})", function.name, sql.join(", ")), class))
    }

    /// The class of a function's result. A text of a JSON document has a collation of its own, so it and
    /// what is made of it do not meet texts with other collations.
    pub(super) fn collated(
        &self,
        function: &Function,
        arguments: &[Term],
        classes: &[Class],
        result: Class,
    ) -> Result<Class, NotBatchable> {
        if !classes.contains(&Class::JsonText) || result == Class::Json {
            return Ok(result);
        }
        let others = arguments.iter().zip(classes).any(|(argument, class)| {
            *class == Class::Text && !matches!(argument, Term::Literal(_))
        });
        match result {
            _ if others => {
                let name = function.name;
                Err(self
                    .because(format!("{name} mixes a text of a JSON document with other texts")))
            }
            Class::Text => Ok(Class::JsonText),
            other => Ok(other),
        }
    }

    pub(super) fn case(
        &mut self,
        operand: Option<&Term>,
        arms: &[(Term, Term)],
        otherwise: Option<&Term>,
        want: Option<Class>,
    ) -> Result<Typed, NotBatchable> {
        let whens: Vec<&Term> = arms.iter().map(|(when, _)| when).collect();
        let thens: Vec<&Term> = arms.iter().map(|(_, then)| then).chain(otherwise).collect();
        let (mut sql, whens) = match operand {
            None => {
                let whens: Result<Vec<_>, _> =
                    whens.iter().map(|when| self.condition(when)).collect();
                ("(CASE".to_owned(), whens?)
            }
            Some(operand) => {
                let all: Vec<&Term> = [operand].into_iter().chain(whens).collect();
                let (mut all, _) = self.comparable(&all)?;
                let whens = all.split_off(1);
                (format!("(CASE {}", all.join("")), whens)
            }
        };
        let (thens, class) = self.same(&thens, want)?;
        for (when, then) in whens.iter().zip(&thens) {
            write!(sql, " WHEN {when} THEN {then}").expect("writing to a String cannot fail");
        }
        if otherwise.is_some()
            && let Some(last) = thens.last()
        {
            write!(sql, " ELSE {last}").expect("writing to a String cannot fail");
        }
        sql.push_str(" END)");
        Ok((sql, class))
    }

    pub(super) fn cast(&mut self, inner: &Term, cast: Cast) -> Result<Typed, NotBatchable> {
        use Class::{Integer, Json, JsonText, Number, Temporal, Text};
        let (want, taken, kind, class): (_, &[Class], _, _) = match cast {
            Cast::Signed => (Integer, &[Integer, Number], "SIGNED".to_owned(), Integer),
            Cast::Unsigned => (Integer, &[Integer, Number], "UNSIGNED".to_owned(), Integer),
            Cast::Decimal(digits, scale) => {
                (Number, &[Integer, Number], format!("DECIMAL({digits}, {scale})"), Number)
            }
            Cast::Char(length) => {
                let length = length.map_or_else(String::new, |length| format!("({length})"));
                (Text, &[Integer, Text, JsonText], format!("CHAR{length}"), Text)
            }
            Cast::Date => (Temporal, &[Temporal], "DATE".to_owned(), Temporal),
            Cast::DateTime(fraction) => {
                (Temporal, &[Temporal], format!("DATETIME({fraction})"), Temporal)
            }
            Cast::Json => (Json, &[Json], "JSON".to_owned(), Json),
        };
        let (sql, found) = self.typed(inner, Some(want))?;
        if !taken.contains(&found) && found != Class::Null && inner.has_parameter() {
            return Err(self.because(format!("it casts {} AS {kind}", named(found))));
        }
        Ok((format!("CAST({sql} AS {kind})"), class))
    }
}
