//! Which handlers run for many events at once.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::SqlStr;

use projection::{Handler, Projection, Statement};

use super::columns::TableInfo;
use super::merge::{Delta, merge};
use super::set::{Owner, SetForm};
use crate::{Error, LockMode, Session};

/// How the statements of a projection run, given its tables as they are.
#[derive(Debug, Default)]
pub struct Forms {
    /// By the number of the statement.
    sets: Vec<Result<SetForm, String>>,
}

impl Forms {
    /// Looks at the tables of a projection.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn read(session: &mut Session, projection: &Projection) -> Result<Self, Error> {
        let mut tables = HashMap::new();
        for table in &projection.tables {
            tables.insert(table.name.clone(), session.table_info(&table.name).await?);
        }
        Ok(Self::of_tables(projection, &tables))
    }

    /// The same, with what is known of the tables.
    pub fn of_tables(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Self {
        let mut statements: Vec<&Statement> = projection.statements().collect();
        // A file can stand for two event types.
        statements.sort_by_key(|statement| statement.id);
        statements.dedup_by_key(|statement| statement.id);
        let delta = |it: &&Statement| Some((it.id, Delta::of(it, tables)?));
        let deltas: Vec<_> = statements.iter().filter_map(delta).collect();
        let mut merged = merge(&deltas, tables);
        let form = |it: &Statement| SetForm::of(it, tables, merged.remove(&it.id));
        Self { sets: statements.into_iter().map(form).collect() }
    }

    /// The forms of a handler's statements, or why it runs event by event.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub fn of(&self, handler: &Handler) -> Result<Vec<&SetForm>, &str> {
        let mut tables = HashSet::new();
        let mut forms = Vec::new();
        for statement in &handler.statements {
            match self.sets.get(statement.id) {
                Some(Ok(form)) => forms.push(form),
                Some(Err(reason)) => return Err(reason),
                None => return Err("its tables were not read"),
            }
            // Statements of different events could meet in a table in another order.
            if !statement.shape.as_ref().is_ok_and(|shape| tables.insert(&shape.table)) {
                return Err("two of its statements change one table");
            }
        }
        Ok(forms)
    }

    /// The statements that stand for many events, beside what they were made from.
    pub fn set_statements<'p>(&self, projection: &'p Projection) -> Vec<(&'p Statement, SqlStr)> {
        let form =
            |statement: &Statement| self.sets.get(statement.id).and_then(|it| it.as_ref().ok());
        projection
            .statements()
            .filter_map(|statement| Some((statement, form(statement)?.sql())))
            .collect()
    }

    /// For each table, the column that names the stream to which a row belongs.
    ///
    /// # Errors
    ///
    /// With the statement whose rows do not belong to one stream.
    pub fn stream_columns(
        &self,
        projection: &Projection,
    ) -> Result<BTreeMap<String, String>, String> {
        if projection.is_rust {
            return Err("it is written in Rust, and may change any row".to_owned());
        }
        let mut columns = BTreeMap::new();
        for statement in projection.statements() {
            let (file, line) = (statement.file.display(), statement.line);
            let form = match self.sets.get(statement.id) {
                Some(Ok(form)) => form,
                Some(Err(reason)) => return Err(format!("{file}:{line}: {reason}")),
                None => return Err("its tables were not read".to_owned()),
            };
            let table = statement.shape.as_ref().map_err(Clone::clone)?.table.clone();
            let Some(Owner::Stream(column)) = &form.owner else {
                return Err(format!(
                    "{file}:{line}: it finds rows of {table} by other values than :stream_id, so they \
                     may belong to several streams"
                ));
            };
            let known = columns.entry(table).or_insert_with(|| column.clone());
            if known != column {
                return Err(format!(
                    "{file}:{line}: another statement names the stream in {known}"
                ));
            }
        }
        Ok(columns)
    }

    /// How batches of this projection run, for people.
    pub fn lock_mode_text(&self) -> &'static str {
        match self.lock_mode() {
            LockMode::Shared => {
                "each row belongs to a stream; lanes and instances work side by side"
            }
            LockMode::Exclusive => "rows are fed by many streams; one batch at a time",
        }
    }

    /// Whether batches can run side by side. They can when all rows belong to streams; rows that are
    /// fed by many streams would be locked by two batches in two orders.
    pub fn lock_mode(&self) -> LockMode {
        let owned =
            |form: &Result<SetForm, String>| form.as_ref().is_ok_and(|form| form.owner.is_some());
        if !self.sets.is_empty() && self.sets.iter().all(owned) {
            LockMode::Shared
        } else {
            LockMode::Exclusive
        }
    }
}
