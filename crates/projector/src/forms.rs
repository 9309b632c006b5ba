//! Which handlers run for many events at once.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::SqlStr;

use crate::mysql::{self, Delta, Owner, Passage, Session, SetForm, TableInfo, merge};
use crate::projection::{Handler, Projection, Statement};

/// How the statements of a projection run, given its tables as they are.
#[derive(Debug, Default)]
pub(crate) struct Forms {
    /// By the number of the statement.
    sets: Vec<Result<SetForm, String>>,
}

impl Forms {
    /// Looks at the tables of a projection.
    pub(crate) async fn read(
        session: &mut Session,
        projection: &Projection,
    ) -> Result<Self, mysql::Error> {
        let mut tables = HashMap::new();
        for table in &projection.tables {
            tables.insert(table.name.clone(), session.table_info(&table.name).await?);
        }
        Ok(Self::of_tables(projection, &tables))
    }

    /// The same, with what is known of the tables.
    pub(crate) fn of_tables(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Self {
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
    pub(crate) fn of(&self, handler: &Handler) -> Result<Vec<&SetForm>, &str> {
        let mut tables = HashSet::new();
        let mut forms = Vec::new();
        for statement in &handler.statements {
            match self.sets.get(statement.id) {
                Some(Ok(form)) => forms.push(form),
                Some(Err(reason)) => return Err(reason),
                None => return Err("its tables were not looked at"),
            }
            // Statements of different events could meet in a table in another order.
            if !statement.shape.as_ref().is_ok_and(|shape| tables.insert(&shape.table)) {
                return Err("two of its statements change one table");
            }
        }
        Ok(forms)
    }

    /// The statements that stand for many events, beside what they were made from.
    pub(crate) fn set_statements<'p>(
        &self,
        projection: &'p Projection,
    ) -> Vec<(&'p Statement, SqlStr)> {
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
    pub(crate) fn stream_columns(
        &self,
        projection: &Projection,
    ) -> Result<BTreeMap<String, String>, String> {
        if projection.code.is_some() {
            return Err("it is written in Rust, and may change any row".to_owned());
        }
        let mut columns = BTreeMap::new();
        for statement in projection.statements() {
            let (file, line) = (statement.file.display(), statement.line);
            let form = match self.sets.get(statement.id) {
                Some(Ok(form)) => form,
                Some(Err(reason)) => return Err(format!("{file}:{line}: {reason}")),
                None => return Err("its tables were not looked at".to_owned()),
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
    pub(crate) fn passage_text(&self) -> &'static str {
        match self.passage() {
            Passage::Shared => {
                "each row belongs to a stream; lanes and instances work side by side"
            }
            Passage::Alone => "rows are fed by many streams; one batch at a time",
        }
    }

    /// Whether batches can run side by side. They can when all rows belong to streams; rows that are
    /// fed by many streams would be locked by two batches in two orders.
    pub(crate) fn passage(&self) -> Passage {
        let owned =
            |form: &Result<SetForm, String>| form.as_ref().is_ok_and(|form| form.owner.is_some());
        if !self.sets.is_empty() && self.sets.iter().all(owned) {
            Passage::Shared
        } else {
            Passage::Alone
        }
    }
}
