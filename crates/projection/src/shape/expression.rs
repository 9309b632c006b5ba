//! Reads expressions.

use sqlparser::ast::{
    BinaryOperator, CaseWhen, CastKind, CeilFloorKind, DataType, DateTimeField, ExactNumberInfo,
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, UnaryOperator, Value,
};

use super::functions::function;
use super::read::Reader;
use super::{Cast, NotBatchable, Term};

impl Reader {
    pub(super) fn term(&self, expr: &Expr) -> Result<Term, NotBatchable> {
        let boxed = |expr: &Expr| self.term(expr).map(Box::new);
        Ok(match expr {
            Expr::Nested(inner) => self.term(inner)?,
            Expr::Identifier(name) => self.name(std::slice::from_ref(name))?,
            Expr::CompoundIdentifier(names) => self.name(names)?,
            Expr::Value(value) => self.literal(expr, &value.value)?,
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => negative(self.term(expr)?),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => Term::Not(boxed(expr)?),
            Expr::BinaryOp { left, op, right } => self.binary(expr, left, op, right)?,
            Expr::IsNull(inner) => Term::IsNull(Box::new(self.operand(inner)?), false),
            Expr::IsNotNull(inner) => Term::IsNull(Box::new(self.operand(inner)?), true),
            Expr::Between { expr, negated, low, high } => {
                let compare = |op, bound: &Expr| {
                    Ok(Term::Binary(
                        Box::new(self.operand(expr)?),
                        op,
                        Box::new(self.operand(bound)?),
                    ))
                };
                let both = joined("AND", [compare(">=", low)?, compare("<=", high)?]);
                not_if(*negated, both)
            }
            Expr::InList { expr, list, negated } => {
                let one = |item: &Expr| {
                    Ok(Term::Binary(
                        Box::new(self.operand(expr)?),
                        "=",
                        Box::new(self.operand(item)?),
                    ))
                };
                let all: Vec<Term> = list.iter().map(one).collect::<Result<_, _>>()?;
                not_if(*negated, joined("OR", all))
            }
            Expr::Like { negated, any: false, expr, pattern, escape_char: None } => {
                let (text, pattern) = (self.operand(expr)?, self.operand(pattern)?);
                not_if(*negated, Term::Binary(Box::new(text), "LIKE", Box::new(pattern)))
            }
            Expr::Function(function) => self.call(expr, function)?,
            Expr::Ceil {
                expr: inner,
                field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime),
            } => self.call_of(expr, "CEIL", vec![self.term(inner)?])?,
            Expr::Floor {
                expr: inner,
                field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime),
            } => self.call_of(expr, "FLOOR", vec![self.term(inner)?])?,
            Expr::Substring { expr: text, substring_from: Some(from), substring_for, .. } => {
                let mut arguments = vec![self.term(text)?, self.term(from)?];
                arguments.extend(substring_for.as_deref().map(|it| self.term(it)).transpose()?);
                self.call_of(expr, "SUBSTRING", arguments)?
            }
            Expr::Trim { trim_where: None, trim_what: None, expr: text, trim_characters: None } => {
                self.call_of(expr, "TRIM", vec![self.term(text)?])?
            }
            Expr::Extract { field, expr: inner, .. } => {
                let known = ["YEAR", "QUARTER", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND"];
                let field = field.to_string().to_uppercase();
                match known.into_iter().find(|known| *known == field) {
                    Some(name) => self.call_of(expr, name, vec![self.term(inner)?])?,
                    None => {
                        return Err(
                            self.because_of(expr, format!("EXTRACT({field} …) is not batchable"))
                        );
                    }
                }
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                let arm =
                    |arm: &CaseWhen| Ok((self.term(&arm.condition)?, self.term(&arm.result)?));
                Term::Case {
                    operand: operand.as_deref().map(boxed).transpose()?,
                    arms: conditions.iter().map(arm).collect::<Result<_, _>>()?,
                    otherwise: else_result.as_deref().map(boxed).transpose()?,
                }
            }
            Expr::Cast { kind: CastKind::Cast, expr: inner, data_type, format: None } => {
                let reason =
                    || self.because_of(expr, format!("CAST AS {data_type} is not batchable"));
                Term::Cast(boxed(inner)?, cast(data_type).ok_or_else(reason)?)
            }
            Expr::Interval(interval) => {
                let field = interval.leading_field.as_ref();
                let unit = field.and_then(|field| unit(&field.to_string()));
                match unit {
                    Some(unit) if interval.last_field.is_none() => {
                        Term::Interval(boxed(&interval.value)?, unit)
                    }
                    _ => return Err(self.because_of(expr, "this INTERVAL is not batchable")),
                }
            }
            Expr::Subquery(query) => self.subquery(query, false)?,
            Expr::Exists { subquery, negated } => not_if(*negated, self.subquery(subquery, true)?),
            Expr::InSubquery { .. } => return Err(self.because_of(expr, "it has IN (SELECT …)")),
            other => {
                return Err(self.because_of(
                    other,
                    format!("the expression {} is not batchable", shown(other)),
                ));
            }
        })
    }

    fn binary(
        &self,
        whole: &Expr,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
    ) -> Result<Term, NotBatchable> {
        let arithmetic = match op {
            BinaryOperator::Plus => "+",
            BinaryOperator::Minus => "-",
            BinaryOperator::Multiply => "*",
            BinaryOperator::Divide => "/",
            BinaryOperator::MyIntegerDivide => "DIV",
            BinaryOperator::Modulo => "%",
            BinaryOperator::And => "AND",
            BinaryOperator::Or => "OR",
            _ => "",
        };
        if !arithmetic.is_empty() {
            let (left, right) = (self.term(left)?, self.term(right)?);
            return Ok(Term::Binary(Box::new(left), arithmetic, Box::new(right)));
        }
        if let BinaryOperator::Arrow | BinaryOperator::LongArrow = op {
            let document = vec![self.operand(left)?, self.operand(right)?];
            let part = self.call_of(whole, "JSON_EXTRACT", document)?;
            return match op {
                BinaryOperator::Arrow => Ok(part),
                _ => self.call_of(whole, "JSON_UNQUOTE", vec![part]),
            };
        }
        let comparison = match op {
            BinaryOperator::Eq => "=",
            BinaryOperator::NotEq => "<>",
            BinaryOperator::Lt => "<",
            BinaryOperator::LtEq => "<=",
            BinaryOperator::Gt => ">",
            BinaryOperator::GtEq => ">=",
            BinaryOperator::Spaceship => "<=>",
            _ => return Err(self.because_of(whole, format!("the operator {op} is not batchable"))),
        };
        let (left, right) = (self.operand(left)?, self.operand(right)?);
        Ok(Term::Binary(Box::new(left), comparison, Box::new(right)))
    }

    /// An operand of a comparison. The parser and MySQL read a chain of comparisons in different ways.
    fn operand(&self, expr: &Expr) -> Result<Term, NotBatchable> {
        let is_comparison = match expr {
            Expr::BinaryOp { op, .. } => matches!(
                op,
                BinaryOperator::Eq
                    | BinaryOperator::NotEq
                    | BinaryOperator::Lt
                    | BinaryOperator::LtEq
                    | BinaryOperator::Gt
                    | BinaryOperator::GtEq
                    | BinaryOperator::Spaceship
                    | BinaryOperator::And
                    | BinaryOperator::Or
            ),
            Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::InList { .. }
            | Expr::Between { .. }
            | Expr::Like { .. }
            | Expr::UnaryOp { op: UnaryOperator::Not, .. } => true,
            _ => false,
        };
        if is_comparison {
            let reason = "a comparison is an operand of another one: put it in parentheses";
            return Err(self.because_of(expr, reason));
        }
        self.term(expr)
    }

    fn call(&self, whole: &Expr, called: &Function) -> Result<Term, NotBatchable> {
        let name = self.single(&called.name)?.to_uppercase();
        let FunctionArguments::List(list) = &called.args else {
            return Err(self.because_of(whole, format!("the function {name} is not batchable")));
        };
        if called.over.is_some()
            || called.filter.is_some()
            || list.duplicate_treatment.is_some()
            || !list.clauses.is_empty()
        {
            return Err(self.because_of(whole, format!("this call of {name} is not batchable")));
        }
        let mut arguments = Vec::new();
        for argument in &list.args {
            if let FunctionArg::Unnamed(FunctionArgExpr::Wildcard) = argument
                && name == "COUNT"
            {
                arguments.push(Term::Unit("*"));
                continue;
            }
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else {
                let reason = format!("the arguments of {name} are not batchable");
                return Err(self.because_of(whole, reason));
            };
            let is_unit = name == "TIMESTAMPDIFF" && arguments.is_empty();
            arguments.push(match expr {
                Expr::Identifier(word) if is_unit => {
                    let unit = unit(&word.value);
                    let reason = || self.because_of(expr, format!("{word} is not a known unit"));
                    Term::Unit(unit.ok_or_else(reason)?)
                }
                other => self.term(other)?,
            });
        }
        if name == "VALUES"
            && self.new.is_some()
            && let [Term::Column(column)] = &*arguments
        {
            return Ok(Term::New(column.clone()));
        }
        self.call_of(whole, &name, arguments)
    }

    fn call_of(
        &self,
        whole: &Expr,
        name: &str,
        arguments: Vec<Term>,
    ) -> Result<Term, NotBatchable> {
        let reason = || self.because_of(whole, format!("the function {name} is not batchable"));
        Ok(Term::Call(function(name, self.reads.is_some()).ok_or_else(reason)?, arguments))
    }

    pub(super) fn name(&self, names: &[Ident]) -> Result<Term, NotBatchable> {
        match names {
            [name] => match name.value.strip_prefix('?').map(str::parse) {
                Some(Ok(parameter)) => Ok(Term::Parameter(parameter)),
                _ if self.ambiguous.contains(&name.value.to_lowercase()) => {
                    let reason = format!("{name} is a column of both the table and the new row");
                    Err(self.because_of(&Expr::Identifier(name.clone()), reason))
                }
                _ if self.reads.is_some() => Ok(Term::Found(name.value.to_lowercase())),
                _ => Ok(Term::Column(name.value.to_lowercase())),
            },
            [alias, name] if self.reads.as_ref() == Some(&alias.value) => {
                Ok(Term::Found(name.value.to_lowercase()))
            }
            [table, name] if self.names.contains(&table.value) => {
                Ok(Term::Column(name.value.to_lowercase()))
            }
            [alias, name] if self.new.as_ref() == Some(&alias.value) => {
                Ok(Term::New(name.value.to_lowercase()))
            }
            _ => {
                let name = Expr::CompoundIdentifier(names.to_vec());
                Err(self.because_of(&name, "it names a column of another table"))
            }
        }
    }

    fn literal(&self, expr: &Expr, value: &Value) -> Result<Term, NotBatchable> {
        match value {
            // A float would make the result depend on the order of additions.
            Value::Number(number, _) if !number.contains(['e', 'E']) => {
                Ok(Term::Literal(number.clone()))
            }
            Value::SingleQuotedString(raw) => Ok(Term::Literal(format!("'{raw}'"))),
            Value::DoubleQuotedString(raw) => Ok(Term::Literal(format!("\"{raw}\""))),
            Value::Null => Ok(Term::Literal("NULL".to_owned())),
            Value::Boolean(flag) => Ok(Term::Literal(u8::from(*flag).to_string())),
            other => Err(self.because_of(expr, format!("the literal {other} is not batchable"))),
        }
    }
}

/// The beginning of an expression, for a message.
fn shown(expr: &Expr) -> String {
    let text: String = expr.to_string().chars().take(40).collect();
    text.replace("`?", ":").replace('`', "")
}

fn negative(term: Term) -> Term {
    match term {
        Term::Literal(number) if number.starts_with(|first: char| first.is_ascii_digit()) => {
            Term::Literal(format!("-{number}"))
        }
        other => Term::Binary(Box::new(Term::Literal("0".to_owned())), "-", Box::new(other)),
    }
}

fn not_if(negated: bool, term: Term) -> Term {
    if negated { Term::Not(Box::new(term)) } else { term }
}

/// Joins conditions, of which there is at least one.
fn joined(op: &'static str, terms: impl IntoIterator<Item = Term>) -> Term {
    let join = |left, right| Term::Binary(Box::new(left), op, Box::new(right));
    terms.into_iter().reduce(join).unwrap_or_else(|| Term::Literal("0".to_owned()))
}

fn unit(name: &str) -> Option<&'static str> {
    let units =
        ["MICROSECOND", "SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR"];
    units.into_iter().find(|unit| unit.eq_ignore_ascii_case(name))
}

fn cast(data_type: &DataType) -> Option<Cast> {
    Some(match data_type {
        DataType::Signed | DataType::SignedInteger => Cast::Signed,
        DataType::Unsigned | DataType::UnsignedInteger => Cast::Unsigned,
        DataType::Decimal(ExactNumberInfo::PrecisionAndScale(digits, scale)) => {
            Cast::Decimal(*digits, u64::try_from(*scale).ok()?)
        }
        DataType::Char(None) => Cast::Char(None),
        DataType::Char(Some(sqlparser::ast::CharacterLength::IntegerLength {
            length,
            unit: None,
        })) => Cast::Char(Some(*length)),
        DataType::Date => Cast::Date,
        DataType::Datetime(fraction) => Cast::DateTime(fraction.unwrap_or(0)),
        DataType::JSON => Cast::Json,
        _ => return None,
    })
}
