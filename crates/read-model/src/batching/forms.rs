//! The batch forms of a projection: which of its handlers run as sets.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::SqlStr;

use projection::{Handler, Projection, Statement};

use super::columns::TableInfo;
use super::merge::{Delta, merge};
use super::set::{Owner, SetForm};
use crate::LockMode;

/// The batch forms of a projection's statements, derived from its tables in service.
#[derive(Debug, Default)]
pub struct Forms {
    /// The form of each statement by its id, or the reason why it has none.
    sets: Vec<Result<SetForm, String>>,
}

impl Forms {
    /// Derives the forms from the columns and keys of the tables, by table name.
    pub fn of_tables(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Self {
        let mut statements: Vec<&Statement> = projection.statements().collect();
        // A file may handle two event types.
        statements.sort_by_key(|statement| statement.id);
        statements.dedup_by_key(|statement| statement.id);
        let delta = |it: &&Statement| Some((it.id, Delta::of(it, tables)?));
        let deltas: Vec<_> = statements.iter().filter_map(delta).collect();
        let mut merged = merge(&deltas, tables);
        let form = |it: &Statement| SetForm::of(it, tables, merged.remove(&it.id));
        Self { sets: statements.into_iter().map(form).collect() }
    }

    /// The forms of a handler's statements.
    ///
    /// # Errors
    ///
    /// The reason why the handler runs event by event.
    pub fn of(&self, handler: &Handler) -> Result<Vec<&SetForm>, &str> {
        let mut tables = HashSet::new();
        let mut forms = Vec::new();
        for statement in &handler.statements {
            match self.sets.get(statement.id) {
                Some(Ok(form)) => forms.push(form),
                Some(Err(reason)) => return Err(reason),
                None => return Err("the tables have not been read"),
            }
            // Sets run statement by statement. Two statements on one table would change it in another order
            // than event by event.
            if !statement.shape.as_ref().is_ok_and(|shape| tables.insert(&shape.table)) {
                return Err("two of its statements change the same table");
            }
        }
        Ok(forms)
    }

    /// The SQL of each form, with the statement from which it was derived.
    pub fn set_statements<'p>(&self, projection: &'p Projection) -> Vec<(&'p Statement, SqlStr)> {
        let form =
            |statement: &Statement| self.sets.get(statement.id).and_then(|it| it.as_ref().ok());
        projection
            .statements()
            .filter_map(|statement| Some((statement, form(statement)?.sql())))
            .collect()
    }

    /// For each table, the column that contains the id of the stream to which a row belongs.
    ///
    /// # Errors
    ///
    /// The first statement whose rows may belong to several streams, with the reason.
    pub fn stream_columns(
        &self,
        projection: &Projection,
    ) -> Result<BTreeMap<String, String>, String> {
        if projection.is_rust {
            return Err("it is written in Rust and may change any row".to_owned());
        }
        let mut columns = BTreeMap::new();
        for statement in projection.statements() {
            let (file, line) = (statement.file.display(), statement.line);
            let form = match self.sets.get(statement.id) {
                Some(Ok(form)) => form,
                Some(Err(reason)) => return Err(format!("{file}:{line}: {reason}")),
                None => return Err("the tables have not been read".to_owned()),
            };
            let table = statement.shape.as_ref().map_err(Clone::clone)?.table.clone();
            let Some(Owner::Stream(column)) = &form.owner else {
                return Err(format!(
                    "{file}:{line}: the rows that it changes in {table} may belong to several streams, \
                     because no key column equals :stream_id"
                ));
            };
            let known = columns.entry(table).or_insert_with(|| column.clone());
            if known != column {
                return Err(format!(
                    "{file}:{line}: the stream id is in column {column}, but another statement has it in \
                     {known}"
                ));
            }
        }
        Ok(columns)
    }

    /// A sentence for people about the lock mode.
    pub fn lock_mode_text(&self) -> &'static str {
        match self.lock_mode() {
            LockMode::Shared => {
                "each row belongs to one stream; lanes and instances run in parallel"
            }
            LockMode::Exclusive => "several streams change the same rows; one batch runs at a time",
        }
    }

    /// The lock mode of batches: shared if each row belongs to one stream. Otherwise two batches could lock
    /// the same rows in different orders and deadlock, so the mode is exclusive.
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
