//! Reads the effect of a parsed statement, or the reason why it is not batchable.

use sqlparser::ast::{
    Assignment as Assigned, AssignmentTarget, Delete, Expr, FromTable, Ident, Insert, ObjectName,
    OnInsert, Spanned, Statement as Parsed, TableFactor, TableObject, TableWithJoins, Update,
};

use super::{Action, Assignment, Condition, LineColumn, NotBatchable, Shape, Term, conjuncts};

/// Reads the effect of a parsed statement, in which columns named `?0`, `?1`, … stand for the parameters.
/// `place` is that of the statement.
pub(crate) fn shape(parsed: &Parsed, place: LineColumn) -> Result<Shape, NotBatchable> {
    let reader = Reader { place, names: Vec::new(), new: None, reads: None, ambiguous: Vec::new() };
    match parsed {
        Parsed::Insert(insert) => reader.insert(insert),
        Parsed::Update(update) => reader.update(update),
        Parsed::Delete(delete) => reader.delete(delete),
        _ => Err(reader.because("it is not an INSERT, REPLACE, UPDATE or DELETE")),
    }
}

/// The names that the expressions of a statement may use.
pub(super) struct Reader {
    /// The place of the statement.
    pub(super) place: LineColumn,
    /// The name of the table and its alias.
    pub(super) names: Vec<String>,
    /// The alias of the new row, in `ON DUPLICATE KEY UPDATE`; empty if it has none.
    pub(super) new: Option<String>,
    /// The alias of the rows that a subquery or a SELECT reads.
    pub(super) reads: Option<String>,
    /// The columns that both the table and the new row have.
    pub(super) ambiguous: Vec<String>,
}

impl Reader {
    /// A reason that concerns the statement as a whole.
    pub(super) fn because(&self, reason: impl Into<String>) -> NotBatchable {
        NotBatchable { place: self.place, reason: reason.into() }
    }

    /// A reason that concerns a part of the statement.
    pub(super) fn because_of(
        &self,
        part: &impl Spanned,
        reason: impl Into<String>,
    ) -> NotBatchable {
        NotBatchable { place: self.place_of(part), reason: reason.into() }
    }

    pub(super) fn place_of(&self, part: &impl Spanned) -> LineColumn {
        let start = part.span().start;
        if start.line == 0 {
            self.place
        } else {
            LineColumn { line: start.line, column: start.column }
        }
    }

    fn insert(mut self, insert: &Insert) -> Result<Shape, NotBatchable> {
        let Insert { table, columns, source, assignments, partitioned, on, .. } = insert;
        if partitioned.is_some() || insert.priority.is_some() {
            return Err(self.because("the INSERT has a partition or a priority"));
        }
        let TableObject::TableName(table) = table else {
            return Err(self.because("the INSERT does not name a table"));
        };
        let table = self.single(table)?;
        self.names.push(table.clone());
        let (cells, source) = match source.as_deref() {
            None => (self.assignments(assignments)?, None),
            Some(query) => {
                if columns.is_empty() {
                    return Err(self.because("the INSERT does not name its columns"));
                }
                let (values, source) = self.new_rows(query)?;
                if values.len() != columns.len() {
                    let reason = "the INSERT has different numbers of columns and values";
                    return Err(self.because(reason));
                }
                let mut cells = Vec::new();
                for (name, (value, place)) in columns.iter().zip(values) {
                    let column = self.single(name)?.to_lowercase();
                    cells.push(Assignment { column, value, place });
                }
                (cells, source)
            }
        };
        let on_duplicate = match on {
            None => Vec::new(),
            Some(OnInsert::DuplicateKeyUpdate(assignments)) => {
                self.new = Some(match &insert.insert_alias {
                    None => String::new(),
                    Some(alias) if alias.col_aliases.as_ref().is_none_or(Vec::is_empty) => {
                        self.single(&alias.row_alias)?
                    }
                    Some(_) => return Err(self.because("the INSERT has column aliases")),
                });
                if self.new.as_ref().is_some_and(|alias| !alias.is_empty()) {
                    self.ambiguous = cells.iter().map(|cell| cell.column.clone()).collect();
                }
                self.assignments(assignments)?
            }
            Some(_) => return Err(self.because("the INSERT has ON CONFLICT")),
        };
        let (replaces, ignores) = (insert.replace_into, insert.ignore);
        Ok(Shape {
            action: Action::Insert { replaces, ignores, source, cells, on_duplicate },
            table,
        })
    }

    fn update(mut self, update: &Update) -> Result<Shape, NotBatchable> {
        let Update { table, assignments, from, selection, order_by, limit, .. } = update;
        if from.is_some() || !order_by.is_empty() || limit.is_some() {
            return Err(self.because("the UPDATE has FROM, ORDER BY or LIMIT"));
        }
        let table = self.only_table(table)?;
        let assignments = self.assignments(assignments)?;
        let conditions = self.some_conditions(selection.as_ref())?;
        Ok(Shape { action: Action::Update { assignments, conditions }, table })
    }

    fn delete(mut self, delete: &Delete) -> Result<Shape, NotBatchable> {
        let Delete { tables, from, using, selection, order_by, limit, .. } = delete;
        if !tables.is_empty() || using.is_some() || !order_by.is_empty() || limit.is_some() {
            return Err(self.because("the DELETE has several tables, ORDER BY or LIMIT"));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = from;
        let [table] = &**from else {
            return Err(self.because("the DELETE names several tables"));
        };
        let table = self.only_table(table)?;
        let conditions = self.some_conditions(selection.as_ref())?;
        Ok(Shape { action: Action::Delete { conditions }, table })
    }

    fn assignments(&self, assignments: &[Assigned]) -> Result<Vec<Assignment>, NotBatchable> {
        let mut found: Vec<Assignment> = Vec::new();
        for assignment in assignments {
            let AssignmentTarget::ColumnName(name) = &assignment.target else {
                return Err(self.because("it assigns several columns at once"));
            };
            let column = match &*self.idents(name)? {
                [column] => column.value.to_lowercase(),
                [table, column] if self.names.contains(&table.value) => column.value.to_lowercase(),
                _ => {
                    let reason = format!("it assigns {name}, which is not a column of the table");
                    return Err(self.because_of(name, reason));
                }
            };
            if found.iter().any(|known| known.column == column) {
                return Err(self.because_of(name, format!("it assigns {column} twice")));
            }
            let (value, place) = (self.term(&assignment.value)?, self.place_of(&assignment.target));
            found.push(Assignment { column, value, place });
        }
        Ok(found)
    }

    fn some_conditions(&self, selection: Option<&Expr>) -> Result<Vec<Condition>, NotBatchable> {
        match selection {
            Some(_) => self.conditions(selection),
            None => Err(self.because("it has no WHERE")),
        }
    }

    pub(super) fn conditions(
        &self,
        selection: Option<&Expr>,
    ) -> Result<Vec<Condition>, NotBatchable> {
        let mut conditions = Vec::new();
        for expr in conjuncts(selection) {
            conditions.push(match self.term(expr)? {
                Term::Binary(left, op, right)
                    if COMPARED_WITH_COLUMN.contains(&op)
                        && (is_column(&left) || is_column(&right)) =>
                {
                    Condition::Compare(*left, op, *right)
                }
                Term::IsNull(inner, negated) => match *inner {
                    Term::Column(column) => Condition::IsNull(column, negated),
                    other => Condition::Other(Term::IsNull(Box::new(other), negated)),
                },
                other => Condition::Other(other),
            });
        }
        Ok(conditions)
    }

    fn only_table(&mut self, table: &TableWithJoins) -> Result<String, NotBatchable> {
        match &table.relation {
            TableFactor::Table { name, alias, index_hints, partitions, .. }
                if table.joins.is_empty() && index_hints.is_empty() && partitions.is_empty() =>
            {
                let name = self.single(name)?;
                let alias = alias.as_ref().map(|alias| alias.name.value.clone());
                self.names.push(alias.unwrap_or_else(|| name.clone()));
                Ok(name)
            }
            _ => Err(self.because_of(table, "it has a join, a hint or a subquery")),
        }
    }

    fn idents(&self, name: &ObjectName) -> Result<Vec<Ident>, NotBatchable> {
        let ident = |part: &sqlparser::ast::ObjectNamePart| {
            let reason = || self.because_of(name, format!("the name {name} is not batchable"));
            part.as_ident().cloned().ok_or_else(reason)
        };
        name.0.iter().map(ident).collect()
    }

    pub(super) fn single(&self, name: &ObjectName) -> Result<String, NotBatchable> {
        match &*self.idents(name)? {
            [name] => Ok(name.value.clone()),
            _ => Err(self.because_of(name, format!("the name {name} has several parts"))),
        }
    }
}

/// The comparisons of a column that `WHERE` may use to find rows.
const COMPARED_WITH_COLUMN: [&str; 6] = ["=", "<>", "<", "<=", ">", ">="];

fn is_column(term: &Term) -> bool {
    matches!(term, Term::Column(_) | Term::Found(_))
}
