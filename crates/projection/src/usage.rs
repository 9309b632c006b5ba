//! What a statement does with the values of its parameters.
//!
//! MySQL converts a value to the type of the column that receives it, and some of these conversions change
//! the value without an error. The type of the column decides how a value must be bound, so this module
//! finds the column that each parameter meets.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::ControlFlow;

use sqlparser::ast::{
    Assignment, AssignmentTarget, BinaryOperator, DataType, Expr, Function, FunctionArg,
    FunctionArgExpr, FunctionArguments, Ident, Insert, ObjectName, OnInsert, SelectItem, SetExpr,
    Statement, TableFactor, TableObject, UnaryOperator, Visit, Visitor,
};

/// What a statement does with the value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Use {
    /// The value becomes the value of a column.
    Stored(ColumnName),
    /// The value may become that of a column: it is a result of CASE or IF, or the first argument of NULLIF.
    Chosen {
        /// The column.
        column: ColumnName,
        /// Whether NULLIF also compares the value.
        is_compared: bool,
    },
    /// The value is added to a column or subtracted from it.
    Added(ColumnName),
    /// The value is compared with a column.
    Compared(ColumnName),
    /// The value is an operand of arithmetic.
    Number,
    /// The value is an argument of a function of times, such as `DATE`.
    Time,
    /// The value is converted to JSON by `CAST`.
    Json,
    /// Anything else.
    #[default]
    Free,
}

/// A column that a parameter meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnName {
    /// The tables of the statement that may have the column, in lower case.
    pub tables: Vec<String>,
    /// The place of the column in those tables.
    pub place: Place,
}

/// The place of a column in its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Its name, in lower case.
    Named(String),
    /// Its number, from 0, for an INSERT that does not name its columns.
    At(usize),
}

/// Functions and operators of times. Their arguments are times, numbers, or texts that are no time.
const OF_TIMES: [&str; 32] = [
    "ADDDATE",
    "ADDTIME",
    "CONVERT_TZ",
    "DATE",
    "DATEDIFF",
    "DATE_ADD",
    "DATE_FORMAT",
    "DATE_SUB",
    "DAY",
    "DAYNAME",
    "DAYOFMONTH",
    "DAYOFWEEK",
    "DAYOFYEAR",
    "HOUR",
    "LAST_DAY",
    "MICROSECOND",
    "MINUTE",
    "MONTH",
    "MONTHNAME",
    "QUARTER",
    "SECOND",
    "SUBDATE",
    "SUBTIME",
    "TIMEDIFF",
    "TIMESTAMP",
    "TIMESTAMPADD",
    "TIMESTAMPDIFF",
    "TIME_TO_SEC",
    "TO_DAYS",
    "TO_SECONDS",
    "WEEKDAY",
    "YEAR",
];

/// Functions whose result is one of their arguments.
const TRANSPARENT: [&str; 4] = ["COALESCE", "GREATEST", "IFNULL", "LEAST"];

/// The use of each of `count` parameters in a parsed statement, in which columns named `?0`, `?1`, … stand
/// for the parameters.
pub(crate) fn uses(parsed: &Statement, count: usize) -> Vec<Use> {
    let mut tables = Tables::default();
    let ControlFlow::Continue(()) = parsed.visit(&mut tables);
    let mut finder = Finder { tables: tables.0, uses: vec![Use::Free; count] };
    let ControlFlow::Continue(()) = parsed.visit(&mut finder);
    match parsed {
        Statement::Insert(insert) => finder.insert(insert),
        Statement::Update(update) => finder.assignments(&update.assignments),
        _ => {}
    }
    finder.uses
}

impl Use {
    /// The use of a value that a condition selects for this use.
    fn chosen(&self, is_compared: bool) -> Self {
        match self {
            Self::Stored(column) => Self::Chosen { column: column.clone(), is_compared },
            Self::Chosen { column, is_compared: before } => {
                Self::Chosen { column: column.clone(), is_compared: is_compared || *before }
            }
            other => other.clone(),
        }
    }
}

/// The tables of a statement, in lower case, by the names that its expressions use for them.
#[derive(Default)]
struct Tables(HashMap<String, String>);

impl Tables {
    fn add(&mut self, name: &ObjectName, alias: Option<&Ident>) {
        let Some(table) = last(name) else { return };
        let known = alias.map_or_else(|| table.clone(), |alias| alias.value.to_lowercase());
        self.0.insert(known, table);
    }
}

impl Visitor for Tables {
    type Break = Infallible;

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<Infallible> {
        if let TableFactor::Table { name, alias, .. } = table {
            self.add(name, alias.as_ref().map(|alias| &alias.name));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Infallible> {
        if let Statement::Insert(Insert {
            table: TableObject::TableName(name), insert_alias, ..
        }) = statement
        {
            self.add(name, None);
            if let (Some(alias), Some(table)) = (insert_alias, last(name)) {
                self.0.extend(last(&alias.row_alias).map(|alias| (alias, table)));
            }
        }
        ControlFlow::Continue(())
    }
}

/// The last part of a name, in lower case.
fn last(name: &ObjectName) -> Option<String> {
    Some(name.0.last()?.as_ident()?.value.to_lowercase())
}

struct Finder {
    tables: HashMap<String, String>,
    uses: Vec<Use>,
}

impl Visitor for Finder {
    type Break = Infallible;

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Infallible> {
        match expr {
            Expr::BinaryOp { left, op, right } => self.operands(left, op, right),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => self.meet(expr, &Use::Number),
            Expr::InList { expr, list, .. } => self.compare(expr, list.iter()),
            Expr::Between { expr, low, high, .. } => {
                self.compare(expr, [&**low, &**high]);
                self.compare(low, [&**expr]);
            }
            Expr::Case { operand: Some(operand), conditions, .. } => {
                self.compare(operand, conditions.iter().map(|when| &when.condition));
            }
            Expr::Cast { expr, data_type, .. }
            | Expr::Convert { expr, data_type: Some(data_type), .. } => match data_type {
                DataType::Date | DataType::Datetime(_) | DataType::Time(..) => {
                    self.meet(expr, &Use::Time);
                }
                DataType::JSON => self.meet(expr, &Use::Json),
                _ => {}
            },
            Expr::Extract { expr, .. } => self.meet(expr, &Use::Time),
            Expr::Function(function) => {
                let name = last(&function.name).unwrap_or_default().to_uppercase();
                if OF_TIMES.contains(&&*name) {
                    arguments(function).for_each(|argument| self.meet(argument, &Use::Time));
                } else if name == "NULLIF"
                    && let [first, second] = *arguments(function).collect::<Vec<_>>()
                {
                    self.compare(first, [second]);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Finder {
    fn operands(&mut self, left: &Expr, op: &BinaryOperator, right: &Expr) {
        use BinaryOperator::{
            Divide, Eq, Gt, GtEq, Lt, LtEq, Minus, Modulo, Multiply, MyIntegerDivide, NotEq, Plus,
            Spaceship,
        };
        match op {
            Eq | NotEq | Lt | LtEq | Gt | GtEq | Spaceship => {
                self.compare(left, [right]);
                self.compare(right, [left]);
            }
            Plus | Minus if matches!(right, Expr::Interval(_)) => self.meet(left, &Use::Time),
            Plus | Minus | Multiply | Divide | Modulo | MyIntegerDivide => {
                self.meet(left, &Use::Number);
                self.meet(right, &Use::Number);
            }
            _ => {}
        }
    }

    /// The parameters among `others` are compared with a column.
    fn compare<'e>(&mut self, column: &Expr, others: impl IntoIterator<Item = &'e Expr>) {
        if let Some(column) = self.column(column) {
            let compared = Use::Compared(column);
            others.into_iter().for_each(|other| self.meet(other, &compared));
        }
    }

    fn insert(&mut self, insert: &Insert) {
        let TableObject::TableName(table) = &insert.table else { return };
        let tables: Vec<String> = last(table).into_iter().collect();
        let columns: Vec<Option<String>> = insert.columns.iter().map(last).collect();
        if let Some(query) = &insert.source {
            self.rows(&query.body, &tables, &columns);
        }
        self.assignments(&insert.assignments);
        if let Some(OnInsert::DuplicateKeyUpdate(assignments)) = &insert.on {
            self.assignments(assignments);
        }
    }

    /// The rows that an INSERT stores.
    fn rows(&mut self, body: &SetExpr, tables: &[String], columns: &[Option<String>]) {
        let stored = |index: usize| {
            let named = columns.get(index).cloned().flatten().map(Place::Named);
            let place = if columns.is_empty() { Some(Place::At(index)) } else { named };
            place.map(|place| Use::Stored(ColumnName { tables: tables.to_vec(), place }))
        };
        match body {
            SetExpr::Values(values) => {
                for row in &values.rows {
                    for (index, expr) in row.content.iter().enumerate() {
                        if let Some(stored) = stored(index) {
                            self.meet(expr, &stored);
                        }
                    }
                }
            }
            SetExpr::Select(select) => {
                for (index, item) in select.projection.iter().enumerate() {
                    let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) =
                        item
                    else {
                        // Behind a wildcard, the numbers of the columns are unknown.
                        break;
                    };
                    if let Some(stored) = stored(index) {
                        self.meet(expr, &stored);
                    }
                }
            }
            SetExpr::Query(query) => self.rows(&query.body, tables, columns),
            SetExpr::SetOperation { left, right, .. } => {
                self.rows(left, tables, columns);
                self.rows(right, tables, columns);
            }
            _ => {}
        }
    }

    fn assignments(&mut self, assignments: &[Assignment]) {
        for Assignment { target, value } in assignments {
            let AssignmentTarget::ColumnName(name) = target else { continue };
            let parts = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
            if let Some(column) = self.column(&Expr::CompoundIdentifier(parts)) {
                self.meet(value, &Use::Stored(column));
            }
        }
    }

    /// Records a use of every parameter that can be the value of an expression.
    fn meet(&mut self, expr: &Expr, how: &Use) {
        match expr {
            Expr::Identifier(name) => {
                if let Some(known) = index(name).and_then(|index| self.uses.get_mut(index)) {
                    known.clone_from(how);
                }
            }
            Expr::Nested(inner) => self.meet(inner, how),
            Expr::Case { conditions, else_result, .. } => {
                let how = &how.chosen(false);
                for result in
                    conditions.iter().map(|when| &when.result).chain(else_result.as_deref())
                {
                    self.meet(result, how);
                }
            }
            Expr::Function(function) => {
                let name = last(&function.name).unwrap_or_default().to_uppercase();
                let (skipped, taken, how) = match &*name {
                    "IF" => (1, 2, &how.chosen(false)),
                    "NULLIF" => (0, 1, &how.chosen(true)),
                    other if TRANSPARENT.contains(&other) => (0, usize::MAX, how),
                    _ => return,
                };
                for argument in arguments(function).skip(skipped).take(taken) {
                    self.meet(argument, how);
                }
            }
            Expr::BinaryOp { left, op: BinaryOperator::Plus | BinaryOperator::Minus, right } => {
                let (Use::Stored(column) | Use::Added(column)) = how else { return };
                // In `:a + :b`, only the sum must fit the column.
                if self.contains(left, column) || self.contains(right, column) {
                    let added = Use::Added(column.clone());
                    self.meet(left, &added);
                    self.meet(right, &added);
                }
            }
            _ => {}
        }
    }

    /// Whether a column can be the value of an expression, or a term of its sum.
    fn contains(&self, expr: &Expr, column: &ColumnName) -> bool {
        match expr {
            Expr::Nested(inner) => self.contains(inner, column),
            Expr::Function(function) => {
                let name = last(&function.name).unwrap_or_default().to_uppercase();
                TRANSPARENT.contains(&&*name)
                    && arguments(function).any(|argument| self.contains(argument, column))
            }
            Expr::BinaryOp { left, op: BinaryOperator::Plus | BinaryOperator::Minus, right } => {
                self.contains(left, column) || self.contains(right, column)
            }
            other => self.column(other).is_some_and(|found| found.place == column.place),
        }
    }

    /// The column that an expression names.
    fn column(&self, expr: &Expr) -> Option<ColumnName> {
        let (tables, name) = match expr {
            Expr::Nested(inner) => return self.column(inner),
            Expr::Identifier(name) => (self.tables.values().cloned().collect(), name),
            Expr::CompoundIdentifier(parts) => match &parts[..] {
                [name] => (self.tables.values().cloned().collect(), name),
                [.., table, name] => {
                    (vec![self.tables.get(&table.value.to_lowercase())?.clone()], name)
                }
                [] => return None,
            },
            _ => return None,
        };
        let place = Place::Named(name.value.to_lowercase());
        index(name).is_none().then_some(ColumnName { tables, place })
    }
}

/// The number of the parameter that a name stands for.
fn index(name: &Ident) -> Option<usize> {
    name.value.strip_prefix('?')?.parse().ok()
}

fn arguments(function: &Function) -> impl Iterator<Item = &Expr> {
    let list = match &function.args {
        FunctionArguments::List(list) => &list.args[..],
        _ => &[],
    };
    list.iter().filter_map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        _ => None,
    })
}
