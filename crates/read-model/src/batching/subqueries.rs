//! Writes subqueries, and the rows from which an INSERT is made.

use std::mem::take;

use projection::{Class, NotBatchable, RowSource, SourceRows, Subquery};

use super::columns::{Kind, TableInfo};
use super::row::quoted;
use super::terms::Typed;
use super::writer::Writer;

/// The rows that a subquery or a SELECT reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'w> {
    alias: &'w str,
    columns: FoundColumns<'w>,
}

#[derive(Debug, Clone, Copy)]
enum FoundColumns<'w> {
    Table(&'w TableInfo),
    Items(&'w [(String, Class)]),
}

impl<'w> Writer<'w> {
    /// A subquery.
    pub(super) fn subquery(&mut self, subquery: &Subquery) -> Result<Typed, NotBatchable> {
        let table = self.read_table(&subquery.table)?;
        let alias = format!("read_{}", self.reads.len());
        // The alias of a subquery could be that of the table itself.
        let before = self.found.replace(Found { alias: "", columns: FoundColumns::Table(table) });
        let lenient = self.lenient;
        let typed = self.lookup_within(subquery, &alias);
        self.lenient = lenient;
        self.found = before;
        typed
    }

    fn lookup_within(&mut self, subquery: &Subquery, alias: &str) -> Result<Typed, NotBatchable> {
        let pins = take(&mut self.pins);
        let conditions = self.conditions(&subquery.conditions);
        let read = std::mem::replace(&mut self.pins, pins);
        let conditions = conditions?;
        self.reads.push((subquery.table.clone(), read));
        let (value, class) = match &subquery.value {
            None => ("1".to_owned(), Class::Integer),
            Some(value) => self.free_as(value, None)?,
        };
        let value = value.replace(UNNAMED, &format!("{alias}."));
        let conditions = conditions.replace(UNNAMED, &format!("{alias}."));
        let filter =
            if conditions.is_empty() { String::new() } else { format!(" WHERE {conditions}") };
        let exists = if subquery.value.is_none() { "EXISTS " } else { "" };
        let table = quoted(&subquery.table);
        Ok((format!("{exists}(SELECT {value} FROM {table} AS {alias}{filter})"), class))
    }

    /// The rows that an INSERT selects from, joined to the events in their order. `in_order` says whether
    /// the order of the new rows matters.
    pub(super) fn source(
        &mut self,
        source: &'w RowSource,
        in_order: bool,
    ) -> Result<String, NotBatchable> {
        let alias = quoted(&source.alias);
        let (rows, columns) = match &source.rows {
            SourceRows::Table(name) if in_order => {
                let reason = format!("the order in which it reads {name} may matter");
                return Err(self.because(reason));
            }
            SourceRows::Table(name) => {
                let table = self.read_table(name)?;
                (format!("{} AS {alias}", quoted(name)), FoundColumns::Table(table))
            }
            SourceRows::Items { document, rest, columns } => {
                let (document, class) = self.typed(document, Some(Class::Json))?;
                if class != Class::Json {
                    return Err(self.because("the document of JSON_TABLE is not JSON"));
                }
                let rows = format!("JSON_TABLE({document}{rest} AS {alias}");
                (rows, FoundColumns::Items(columns))
            }
        };
        self.found = Some(Found { alias: &source.alias, columns });
        let pins = take(&mut self.pins);
        let conditions = self.conditions(&source.conditions);
        let read = std::mem::replace(&mut self.pins, pins);
        if let SourceRows::Table(name) = &source.rows {
            self.reads.push((name.clone(), read));
        }
        let conditions = match conditions? {
            none if none.is_empty() => "TRUE".to_owned(),
            some => some,
        };
        Ok(format!(" STRAIGHT_JOIN {rows} WHERE {conditions}"))
    }

    fn read_table(&self, name: &str) -> Result<&'w TableInfo, NotBatchable> {
        self.tables
            .get(name)
            .ok_or_else(|| self.because(format!("{name} is not a table of this projection")))
    }

    /// A column of the rows that are read, or of the table if those have none with this name.
    pub(super) fn found(&self, name: &str) -> Result<(String, Kind), NotBatchable> {
        match self.found {
            Some(Found { alias, columns: FoundColumns::Table(table) }) => {
                if let Some(column) = table.columns.get(name) {
                    let prefix = if alias.is_empty() {
                        UNNAMED.to_owned()
                    } else {
                        format!("{}.", quoted(alias))
                    };
                    return Ok((format!("{prefix}{}", quoted(name)), column.kind.clone()));
                }
                Ok((self.column(name)?, self.kind(name)?.clone()))
            }
            _ => Err(self.because(format!("{name} is not a column of a table"))),
        }
    }

    /// The same, with the class of its type.
    pub(super) fn found_class(&self, name: &str) -> Result<Typed, NotBatchable> {
        if let Some(Found { alias, columns: FoundColumns::Items(columns) }) = self.found {
            let class = columns.iter().find(|(column, _)| column == name).map(|(_, class)| *class);
            let class =
                class.ok_or_else(|| self.because(format!("{alias} has no column {name}")))?;
            return Ok((format!("{}.{}", quoted(alias), quoted(name)), class));
        }
        let (sql, kind) = self.found(name)?;
        Ok((sql, self.class_of(name, &kind)?))
    }
}

/// Marks a column of a subquery until its alias is known.
const UNNAMED: &str = "\u{1}";
