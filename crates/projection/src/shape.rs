//! What a statement does, where it is simple enough to be batchable.
//!
//! A batchable statement can run for many events at once. A statement with anything that is not named
//! here (a subquery, a join, a function that is not in the list, …) runs event by event, and `projector
//! check` shows the reason.

use std::fmt;

use sqlparser::ast::{
    AssignmentTarget, BinaryOperator, Delete, Expr, FromTable, Function, FunctionArg,
    FunctionArgExpr, FunctionArguments, Ident, Insert, ObjectName, OnInsert, SetExpr,
    Statement as Parsed, TableFactor, TableObject, TableWithJoins, UnaryOperator, Update, Value,
};

/// A batchable statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The one table that it changes.
    pub table: String,
    /// What it does there.
    pub action: Action,
}

/// What a statement does to its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `INSERT` or `REPLACE` of one row.
    Insert {
        /// Whether it is `REPLACE`.
        replaces: bool,
        /// The columns with their values.
        cells: Vec<(String, Term)>,
        /// `ON DUPLICATE KEY UPDATE`
        on_duplicate: Vec<(String, Term)>,
    },
    /// `UPDATE … WHERE …`
    Update {
        /// `SET`
        assignments: Vec<(String, Term)>,
        /// What a row must fulfil, all of it.
        conditions: Vec<Condition>,
    },
    /// `DELETE FROM … WHERE …`
    Delete {
        /// What a row must fulfil, all of it.
        conditions: Vec<Condition>,
    },
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// The parameter with this number.
    Parameter(usize),
    /// A column of the table.
    Column(String),
    /// A number, a string or NULL, as SQL.
    Literal(String),
    /// `a + b`, `a - b`, `a * b`
    Arithmetic(Box<Term>, char, Box<Term>),
    /// A function of [`FUNCTIONS`].
    Call(&'static str, Vec<Term>),
}

/// A part of a `WHERE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// A comparison.
    Compare(Term, &'static str, Term),
    /// `column IS [NOT] NULL`
    IsNull(String, bool),
}

/// Functions whose result depends on their arguments alone.
const FUNCTIONS: [&str; 13] = [
    "COALESCE",
    "CONCAT",
    "DATE",
    "DAY",
    "GREATEST",
    "HOUR",
    "IFNULL",
    "LEAST",
    "LOWER",
    "MONTH",
    "UPPER",
    "UUID_TO_BIN",
    "YEAR",
];

/// Why a statement is not batchable.
type NotBatchable = String;

/// Reads a parsed statement; its parameters are columns named `?0`, `?1`, ….
pub(crate) fn shape(parsed: &Parsed) -> Result<Shape, NotBatchable> {
    match parsed {
        Parsed::Insert(insert) => of_insert(insert),
        Parsed::Update(update) => of_update(update),
        Parsed::Delete(delete) => of_delete(delete),
        _ => Err("it is neither INSERT, REPLACE, UPDATE nor DELETE".to_owned()),
    }
}

fn of_insert(insert: &Insert) -> Result<Shape, NotBatchable> {
    let Insert { ignore, table, columns, source, assignments, partitioned, on, .. } = insert;
    if *ignore || partitioned.is_some() || insert.priority.is_some() || !assignments.is_empty() {
        return Err("INSERT has IGNORE, SET, a partition or a priority".to_owned());
    }
    let TableObject::TableName(table) = table else {
        return Err("INSERT is not into a table".to_owned());
    };
    let rows = match source.as_deref().map(|query| (query, &*query.body)) {
        Some((query, SetExpr::Values(values))) if query.order_by.is_none() => &values.rows,
        _ => return Err("INSERT is not of VALUES".to_owned()),
    };
    let [row] = &**rows else { return Err("INSERT has several rows".to_owned()) };
    if columns.is_empty() {
        return Err("INSERT does not name its columns".to_owned());
    }
    let table = single(table)?;
    let scope = Scope { table: &table, inserted: None };
    let columns = columns.iter().map(single).collect::<Result<Vec<_>, _>>()?;
    let cells = row.content.iter().map(|cell| scope.term(cell)).collect::<Result<Vec<_>, _>>()?;
    if cells.len() != columns.len() {
        return Err("INSERT has another number of values than of columns".to_owned());
    }
    let cells: Vec<_> = columns.into_iter().zip(cells).collect();
    let alias = match &insert.insert_alias {
        None => None,
        Some(alias) if alias.col_aliases.is_none() => Some(single(&alias.row_alias)?),
        Some(_) => return Err("INSERT has aliases for columns".to_owned()),
    };
    let on_duplicate = match on {
        None => Vec::new(),
        Some(OnInsert::DuplicateKeyUpdate(assignments)) => {
            let inserted = Some((alias.as_deref(), &*cells));
            Scope { table: &table, inserted }.assignments(assignments)?
        }
        Some(_) => return Err("INSERT has ON CONFLICT".to_owned()),
    };
    let replaces = insert.replace_into;
    Ok(Shape { action: Action::Insert { replaces, cells, on_duplicate }, table })
}

fn of_update(update: &Update) -> Result<Shape, NotBatchable> {
    let Update { table, assignments, from, selection, order_by, limit, .. } = update;
    if from.is_some() || !order_by.is_empty() || limit.is_some() {
        return Err("UPDATE has FROM, ORDER BY or LIMIT".to_owned());
    }
    let table = only_table(table)?;
    let scope = Scope { table: &table, inserted: None };
    let assignments = scope.assignments(assignments)?;
    let conditions = scope.conditions(selection.as_ref())?;
    Ok(Shape { action: Action::Update { assignments, conditions }, table })
}

fn of_delete(delete: &Delete) -> Result<Shape, NotBatchable> {
    let Delete { tables, from, using, selection, order_by, limit, .. } = delete;
    if !tables.is_empty() || using.is_some() || !order_by.is_empty() || limit.is_some() {
        return Err("DELETE has several tables, ORDER BY or LIMIT".to_owned());
    }
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = from;
    let [table] = &**from else { return Err("DELETE is from several tables".to_owned()) };
    let table = only_table(table)?;
    let conditions = Scope { table: &table, inserted: None }.conditions(selection.as_ref())?;
    Ok(Shape { action: Action::Delete { conditions }, table })
}

/// The names that an expression can use.
struct Scope<'s> {
    table: &'s str,
    /// In ON DUPLICATE KEY UPDATE.
    inserted: Option<NewRow<'s>>,
}

/// The alias of a new row, and its values.
type NewRow<'s> = (Option<&'s str>, &'s [(String, Term)]);

impl Scope<'_> {
    fn assignments(
        &self,
        assignments: &[sqlparser::ast::Assignment],
    ) -> Result<Vec<(String, Term)>, NotBatchable> {
        let mut found: Vec<(String, Term)> = Vec::new();
        for assignment in assignments {
            let AssignmentTarget::ColumnName(name) = &assignment.target else {
                return Err("several columns are assigned at once".to_owned());
            };
            let Term::Column(column) = self.name(&idents(name)?)? else {
                return Err(format!("{name} is no column"));
            };
            if found.iter().any(|(known, _)| *known == column) {
                return Err(format!("{column} is assigned twice"));
            }
            found.push((column, self.term(&assignment.value)?));
        }
        Ok(found)
    }

    fn conditions(&self, selection: Option<&Expr>) -> Result<Vec<Condition>, NotBatchable> {
        let mut conditions = Vec::new();
        let mut rest: Vec<&Expr> = selection.into_iter().collect();
        while let Some(expr) = rest.pop() {
            match expr {
                Expr::Nested(inner) => rest.push(inner),
                Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                    rest.extend([&**right, &**left]);
                }
                Expr::BinaryOp { left, op, right } => {
                    let op = match op {
                        BinaryOperator::Eq => "=",
                        BinaryOperator::NotEq => "<>",
                        BinaryOperator::Lt => "<",
                        BinaryOperator::LtEq => "<=",
                        BinaryOperator::Gt => ">",
                        BinaryOperator::GtEq => ">=",
                        _ => return Err(format!("a condition with {op} is not batchable")),
                    };
                    conditions.push(Condition::Compare(self.term(left)?, op, self.term(right)?));
                }
                Expr::IsNull(inner) | Expr::IsNotNull(inner) => {
                    let Term::Column(column) = self.term(inner)? else {
                        return Err("IS NULL is not of a column".to_owned());
                    };
                    conditions.push(Condition::IsNull(column, matches!(expr, Expr::IsNotNull(_))));
                }
                _ => return Err("its WHERE is not a list of comparisons joined by AND".to_owned()),
            }
        }
        if conditions.is_empty() {
            return Err("it has no WHERE".to_owned());
        }
        Ok(conditions)
    }

    fn term(&self, expr: &Expr) -> Result<Term, NotBatchable> {
        match expr {
            Expr::Nested(inner) => self.term(inner),
            Expr::Identifier(name) => self.name(std::slice::from_ref(name)),
            Expr::CompoundIdentifier(names) => self.name(names),
            Expr::Value(value) => literal(&value.value),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match self.term(expr)? {
                Term::Literal(number) if !number.starts_with(['\'', 'N', '-']) => {
                    Ok(Term::Literal(format!("-{number}")))
                }
                other => Ok(Term::Arithmetic(
                    Box::new(Term::Literal("0".to_owned())),
                    '-',
                    Box::new(other),
                )),
            },
            Expr::BinaryOp { left, op, right } => {
                let op = match op {
                    BinaryOperator::Plus => '+',
                    BinaryOperator::Minus => '-',
                    BinaryOperator::Multiply => '*',
                    _ => return Err(format!("the operator {op} is not batchable")),
                };
                Ok(Term::Arithmetic(Box::new(self.term(left)?), op, Box::new(self.term(right)?)))
            }
            Expr::Function(function) => self.call(function),
            _ => Err("one of its expressions is not batchable".to_owned()),
        }
    }

    fn call(&self, function: &Function) -> Result<Term, NotBatchable> {
        let name = single(&function.name)?.to_uppercase();
        let FunctionArguments::List(list) = &function.args else {
            return Err(format!("the function {name} is not batchable"));
        };
        let mut arguments = Vec::new();
        for argument in &list.args {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else {
                return Err(format!("the arguments of {name} are not batchable"));
            };
            arguments.push(self.term(expr)?);
        }
        if name == "VALUES"
            && let [Term::Column(column)] = &*arguments
        {
            return self.inserted(column);
        }
        let known = FUNCTIONS.iter().find(|known| **known == name);
        let plain = function.over.is_none() && list.clauses.is_empty();
        known
            .filter(|_| plain)
            .map(|known| Term::Call(known, arguments))
            .ok_or_else(|| format!("the function {name} is not batchable"))
    }

    fn name(&self, names: &[Ident]) -> Result<Term, NotBatchable> {
        match names {
            [name] => match name.value.strip_prefix('?').map(str::parse) {
                Some(Ok(parameter)) => Ok(Term::Parameter(parameter)),
                _ => Ok(Term::Column(name.value.to_lowercase())),
            },
            [table, name] if table.value == self.table => {
                Ok(Term::Column(name.value.to_lowercase()))
            }
            [alias, name]
                if self.inserted.is_some_and(|(known, _)| known == Some(&*alias.value)) =>
            {
                self.inserted(&name.value.to_lowercase())
            }
            _ => Err("it names a column of something else than its table".to_owned()),
        }
    }

    /// The value that was to be inserted into a column.
    fn inserted(&self, column: &str) -> Result<Term, NotBatchable> {
        let cells = self.inserted.map_or(&[][..], |(_, cells)| cells);
        match cells.iter().find(|(name, _)| name == column) {
            // The column's type is that of the value, or the statement is not batchable.
            Some((_, term @ (Term::Parameter(_) | Term::Literal(_)))) => Ok(term.clone()),
            _ => Err(format!("the new value of {column} is not a plain one")),
        }
    }
}

fn literal(value: &Value) -> Result<Term, NotBatchable> {
    match value {
        Value::Number(number, _) => Ok(Term::Literal(number.clone())),
        Value::SingleQuotedString(raw) => Ok(Term::Literal(format!("'{raw}'"))),
        Value::Null => Ok(Term::Literal("NULL".to_owned())),
        Value::Boolean(flag) => Ok(Term::Literal(u8::from(*flag).to_string())),
        _ => Err("one of its literals is not batchable".to_owned()),
    }
}

fn only_table(table: &TableWithJoins) -> Result<String, NotBatchable> {
    match &table.relation {
        TableFactor::Table { name, alias: None, index_hints, partitions, .. }
            if table.joins.is_empty() && index_hints.is_empty() && partitions.is_empty() =>
        {
            single(name)
        }
        _ => Err("it has a join, an alias, a hint or a subquery".to_owned()),
    }
}

fn idents(name: &ObjectName) -> Result<Vec<Ident>, NotBatchable> {
    name.0
        .iter()
        .map(|part| part.as_ident().cloned().ok_or_else(|| format!("{name} is not batchable")))
        .collect()
}

fn single(name: &ObjectName) -> Result<String, NotBatchable> {
    match &*idents(name)? {
        [name] => Ok(name.value.clone()),
        _ => Err(format!("{name} is not a plain name")),
    }
}

impl Term {
    /// Whether a column of the table occurs in it.
    pub fn has_column(&self) -> bool {
        self.any_column(&|_| true)
    }

    /// Whether this column occurs in it.
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

    /// What is added to or taken from a column, where that is all: `column + something`.
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
    /// The column, where this is `column = :parameter`.
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
