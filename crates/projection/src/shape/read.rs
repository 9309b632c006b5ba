//! Reads the effect of a parsed statement, or the reason why it is not batchable.

use sqlparser::ast::{
    AssignmentTarget, BinaryOperator, Delete, Expr, FromTable, Function, FunctionArg,
    FunctionArgExpr, FunctionArguments, Ident, Insert, ObjectName, OnInsert, SetExpr,
    Statement as Parsed, TableFactor, TableObject, TableWithJoins, UnaryOperator, Update, Value,
};

use super::{Action, Condition, Shape, Term};

/// Functions whose result depends only on their arguments.
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

/// Reads the effect of a parsed statement, in which columns named `?0`, `?1`, … stand for the parameters.
pub(crate) fn shape(parsed: &Parsed) -> Result<Shape, NotBatchable> {
    match parsed {
        Parsed::Insert(insert) => of_insert(insert),
        Parsed::Update(update) => of_update(update),
        Parsed::Delete(delete) => of_delete(delete),
        _ => Err("it is not an INSERT, REPLACE, UPDATE or DELETE".to_owned()),
    }
}

fn of_insert(insert: &Insert) -> Result<Shape, NotBatchable> {
    let Insert { ignore, table, columns, source, assignments, partitioned, on, .. } = insert;
    if *ignore || partitioned.is_some() || insert.priority.is_some() || !assignments.is_empty() {
        return Err("INSERT has IGNORE, SET, a partition or a priority".to_owned());
    }
    let TableObject::TableName(table) = table else {
        return Err("INSERT does not name a table".to_owned());
    };
    let rows = match source.as_deref().map(|query| (query, &*query.body)) {
        Some((query, SetExpr::Values(values))) if query.order_by.is_none() => &values.rows,
        _ => return Err("INSERT has no VALUES".to_owned()),
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
        return Err("INSERT has different numbers of columns and values".to_owned());
    }
    let cells: Vec<_> = columns.into_iter().zip(cells).collect();
    let alias = match &insert.insert_alias {
        None => None,
        Some(alias) if alias.col_aliases.is_none() => Some(single(&alias.row_alias)?),
        Some(_) => return Err("INSERT has column aliases".to_owned()),
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
    let [table] = &**from else { return Err("DELETE names several tables".to_owned()) };
    let table = only_table(table)?;
    let conditions = Scope { table: &table, inserted: None }.conditions(selection.as_ref())?;
    Ok(Shape { action: Action::Delete { conditions }, table })
}

/// The names that an expression may use.
struct Scope<'s> {
    table: &'s str,
    /// The new row, in `ON DUPLICATE KEY UPDATE`.
    inserted: Option<NewRow<'s>>,
}

/// The alias and the values of a new row.
type NewRow<'s> = (Option<&'s str>, &'s [(String, Term)]);

impl Scope<'_> {
    fn assignments(
        &self,
        assignments: &[sqlparser::ast::Assignment],
    ) -> Result<Vec<(String, Term)>, NotBatchable> {
        let mut found: Vec<(String, Term)> = Vec::new();
        for assignment in assignments {
            let AssignmentTarget::ColumnName(name) = &assignment.target else {
                return Err("it assigns several columns at once".to_owned());
            };
            let Term::Column(column) = self.name(&idents(name)?)? else {
                return Err(format!("it assigns {name}, which is not a column"));
            };
            if found.iter().any(|(known, _)| *known == column) {
                return Err(format!("it assigns {column} twice"));
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
                        return Err("IS NULL tests something other than a column".to_owned());
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
            _ => Err("it names a column of another table".to_owned()),
        }
    }

    /// The value of a column in the new row.
    fn inserted(&self, column: &str) -> Result<Term, NotBatchable> {
        let cells = self.inserted.map_or(&[][..], |(_, cells)| cells);
        match cells.iter().find(|(name, _)| name == column) {
            // A parameter or literal takes the type of its column, so it equals the stored value. For other
            // expressions, the stored value can differ.
            Some((_, term @ (Term::Parameter(_) | Term::Literal(_)))) => Ok(term.clone()),
            _ => Err(format!("the new value of {column} is neither a parameter nor a literal")),
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
        _ => Err(format!("the name {name} has several parts")),
    }
}
