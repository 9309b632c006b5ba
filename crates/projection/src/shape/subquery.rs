//! Reads subqueries, and the rows that an INSERT selects.

use sqlparser::ast::{
    DataType, Expr, GroupByExpr, JsonTableColumn, Query, Select, SelectItem, SetExpr, TableFactor,
};

use super::functions::Class;
use super::read::Reader;
use super::{LineColumn, NotBatchable, RowSource, SourceRows, Subquery, Term};

/// The values of the rows of an INSERT, each with its place.
type Values = Vec<(Term, LineColumn)>;

impl Reader {
    /// The values of the new rows of an INSERT, and the rows that they are made from.
    pub(super) fn new_rows(
        &mut self,
        query: &Query,
    ) -> Result<(Values, Option<RowSource>), NotBatchable> {
        let Query { with: None, body, order_by: None, limit_clause: None, .. } = query else {
            return Err(self.because("the INSERT has WITH, ORDER BY or LIMIT"));
        };
        match &**body {
            SetExpr::Values(values) => match &*values.rows {
                [row] => Ok((self.values(row.content.iter())?, None)),
                [] => Err(self.because("the INSERT has no row")),
                [_, second, ..] => {
                    let second = second.content.first();
                    let reason = "the INSERT has several rows: write one INSERT for each";
                    Err(second.map_or(self.because(reason), |it| self.because_of(it, reason)))
                }
            },
            SetExpr::Select(select) if is_plain(select) => self.selected(select),
            _ => Err(self.because("the INSERT has neither VALUES nor a plain SELECT")),
        }
    }

    fn values<'e>(&self, exprs: impl Iterator<Item = &'e Expr>) -> Result<Values, NotBatchable> {
        exprs.map(|expr| Ok((self.term(expr)?, self.place_of(expr)))).collect()
    }

    fn selected(&mut self, select: &Select) -> Result<(Values, Option<RowSource>), NotBatchable> {
        let item = |item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Ok(expr),
            ref other => Err(self.because_of(other, "the INSERT selects *")),
        };
        let exprs: Vec<Expr> =
            select.projection.iter().cloned().map(item).collect::<Result<_, _>>()?;
        let Some(from) = select.from.first() else {
            if select.selection.is_some() {
                return Err(self.because("the SELECT of the INSERT has WHERE and no FROM"));
            }
            return Ok((self.values(exprs.iter())?, None));
        };
        if select.from.len() > 1 || !from.joins.is_empty() {
            return Err(self.because_of(from, "the SELECT of the INSERT joins tables"));
        }
        let (alias, rows) = self.rows(&from.relation)?;
        self.reads = Some(alias.clone());
        let conditions = self.conditions(select.selection.as_ref());
        let values = self.values(exprs.iter());
        self.reads = None;
        let (conditions, mut values) = (conditions?, values?);
        if !values.iter().any(|(value, _)| value.aggregates()) {
            return Ok((values, Some(RowSource { alias, rows, conditions })));
        }
        let SourceRows::Table(table) = rows else {
            return Err(self.because_of(from, "the SELECT of the INSERT aggregates JSON_TABLE"));
        };
        // Without GROUP BY, aggregates give exactly one row. Each of them can be a subquery.
        for (value, _) in &mut values {
            if value.aggregates() {
                let (table, alias, conditions) = (table.clone(), alias.clone(), conditions.clone());
                let value_of = Some(value.clone());
                *value = Term::Subquery(Box::new(Subquery {
                    table,
                    alias,
                    value: value_of,
                    conditions,
                }));
            } else if value.has_found() {
                return Err(self.because("the SELECT of the INSERT mixes columns and aggregates"));
            }
        }
        Ok((values, None))
    }

    /// The alias and the rows of a FROM.
    fn rows(&self, from: &TableFactor) -> Result<(String, SourceRows), NotBatchable> {
        match from {
            TableFactor::Table { name, alias, index_hints, partitions, .. }
                if index_hints.is_empty() && partitions.is_empty() =>
            {
                let name = self.single(name)?;
                let alias = alias.as_ref().map(|alias| alias.name.value.clone());
                Ok((alias.unwrap_or_else(|| name.clone()), SourceRows::Table(name)))
            }
            TableFactor::JsonTable { json_expr, json_path, columns, alias: Some(alias) } => {
                let document = self.term(json_expr)?;
                let mut types = Vec::new();
                for column in columns {
                    let class = match column {
                        JsonTableColumn::ForOrdinality(name) => Some((name, Class::Integer)),
                        JsonTableColumn::Named(one) => {
                            class_of(&one.r#type).map(|it| (&one.name, it))
                        }
                        JsonTableColumn::Nested(_) => None,
                    };
                    let (name, class) = class.ok_or_else(|| {
                        self.because_of(
                            from,
                            format!("the column {column} of JSON_TABLE is not batchable"),
                        )
                    })?;
                    types.push((name.value.to_lowercase(), class));
                }
                let texts: Vec<String> = columns.iter().map(ToString::to_string).collect();
                let rest = format!(", {json_path} COLUMNS ({}))", texts.join(", "));
                let rows = SourceRows::Items { document, rest, columns: types };
                Ok((alias.name.value.clone(), rows))
            }
            other => Err(self.because_of(other, "it reads rows that are not those of a table")),
        }
    }

    /// A subquery in an expression. With `exists`, only whether it has a row.
    pub(super) fn subquery(&self, query: &Query, exists: bool) -> Result<Term, NotBatchable> {
        let because = |reason: &str| self.because_of(query, reason);
        if self.reads.is_some() {
            return Err(because("a subquery is within another one"));
        }
        let Query { with: None, body, order_by: None, limit_clause: None, .. } = query else {
            return Err(because("a subquery has WITH, ORDER BY or LIMIT"));
        };
        let SetExpr::Select(select) = &**body else {
            return Err(because("a subquery is not a plain SELECT"));
        };
        let ([from], true) = (&*select.from, is_plain(select)) else {
            return Err(because("a subquery has several tables, GROUP BY, DISTINCT or a window"));
        };
        if !from.joins.is_empty() {
            return Err(because("a subquery joins tables"));
        }
        let (alias, SourceRows::Table(table)) = self.rows(&from.relation)? else {
            return Err(because("a subquery reads JSON_TABLE"));
        };
        let within = Self {
            place: self.place,
            names: self.names.clone(),
            new: self.new.clone(),
            reads: Some(alias.clone()),
            ambiguous: self.ambiguous.clone(),
        };
        let conditions = within.conditions(select.selection.as_ref())?;
        let value = match &*select.projection {
            _ if exists => None,
            [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] => {
                Some(within.term(expr)?)
            }
            _ => return Err(because("a subquery has several columns")),
        };
        Ok(Term::Subquery(Box::new(Subquery { table, alias, value, conditions })))
    }
}

/// The class of a column of `JSON_TABLE`.
fn class_of(data_type: &DataType) -> Option<Class> {
    Some(match data_type {
        DataType::TinyInt(_)
        | DataType::SmallInt(_)
        | DataType::MediumInt(_)
        | DataType::Int(_)
        | DataType::Integer(_)
        | DataType::BigInt(_) => Class::Integer,
        DataType::Decimal(_) | DataType::Dec(_) | DataType::Numeric(_) => Class::Number,
        DataType::Char(_) | DataType::Varchar(_) | DataType::Text => Class::Text,
        DataType::JSON => Class::Json,
        DataType::Date | DataType::Datetime(_) => Class::Temporal,
        _ => return None,
    })
}

/// Whether a SELECT has nothing but expressions, FROM and WHERE.
fn is_plain(select: &Select) -> bool {
    let groups = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(by, modifiers) => !by.is_empty() || !modifiers.is_empty(),
    };
    !groups
        && select.distinct.is_none()
        && select.having.is_none()
        && select.into.is_none()
        && select.named_window.is_empty()
        && select.select_modifiers.is_none()
        && select.optimizer_hints.is_empty()
}
