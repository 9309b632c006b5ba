//! Batch forms: statements that run once for many events.
//!
//! Authors write a handler for one event. If its statement has a [`Shape`], this crate derives a statement
//! for many events. The values of the events are one JSON parameter, which the statement joins to its
//! table, so its text is the same for any number of events and it is prepared once. Events that run
//! together in this way are a *set*.
//!
//! ```sql
//! UPDATE customers SET paid = paid + ? WHERE id = ?
//!
//! UPDATE customers JOIN JSON_TABLE(?, '$[*]' COLUMNS (…)) AS events
//!    SET paid = paid + events.projector__0 WHERE id = events.projector__1
//! ```
//!
//! [`Joined`] has one row of values for each event. [`Merged`] first merges all changes of the same row.
//! Events that would change a row more than once in a joined UPDATE run in several [`super::rounds`].
//!
//! **Invariant:** a set has the same effects as its events one by one, or it fails and its events run one
//! by one. A value that the type of its column does not hold exactly never joins a set.
//! (`sets_give_what_their_events_give_one_by_one`)

use std::collections::HashMap;

use sqlx::SqlStr;

use super::columns::TableInfo;
use super::joined::Joined;
use super::merge::Merged;
use super::row::{Row, batchable, because};
use projection::{Action, Condition, NotBatchable, Shape, Statement, Value};

/// The batch form of a statement.
#[derive(Debug, Clone)]
pub(crate) struct SetForm {
    kind: FormKind,
    /// Whether each event must find exactly one row of the table.
    pub(crate) expects_one_row: bool,
}

#[derive(Debug, Clone)]
enum FormKind {
    Joined(Joined),
    Merged(Merged),
}

impl SetForm {
    /// Derives the batch form of a statement. `merged` is its merged form, if it has one.
    ///
    /// # Errors
    ///
    /// The reason why the statement cannot run as a set.
    pub(crate) fn of(
        statement: &Statement,
        tables: &HashMap<String, TableInfo>,
        merged: Option<Merged>,
    ) -> Result<Self, NotBatchable> {
        let (shape, table) = batchable(statement, tables)?;
        let expects_one_row = match statement.rows {
            None => false,
            Some(1) if keys_cover(shape, &table.primary) => true,
            Some(_) => {
                let reason = "only `rows = 1` with the whole primary key in WHERE is batchable";
                return Err(because(statement, reason));
            }
        };
        let kind = match merged {
            Some(merged) => FormKind::Merged(merged),
            None => FormKind::Joined(Joined::of(statement, shape, tables)?),
        };
        Ok(Self { kind, expects_one_row })
    }

    /// Its SQL, with one parameter: the rows as a JSON array.
    pub(crate) fn sql(&self) -> SqlStr {
        match &self.kind {
            FormKind::Joined(joined) => joined.sql.clone(),
            FormKind::Merged(merged) => merged.sql(),
        }
    }

    /// The row of an event, or `None` if the type of a column does not hold its value exactly.
    pub(crate) fn row(&self, values: &[Value]) -> Option<Row> {
        match &self.kind {
            FormKind::Joined(joined) => joined.row(values),
            FormKind::Merged(merged) => merged.row(values),
        }
    }

    /// The columns that equal a value of the row in all rows that the statement changes, with the places of
    /// the values. Their values compare exactly.
    pub(crate) fn pins(&self) -> Vec<(String, usize)> {
        match &self.kind {
            FormKind::Joined(joined) => joined.pins.clone(),
            FormKind::Merged(merged) => merged.pins(),
        }
    }

    /// The tables that it reads, with the columns of the rows that it reads that equal a value of its row.
    pub(crate) fn reads(&self) -> &[(String, Vec<(String, usize)>)] {
        match &self.kind {
            FormKind::Joined(joined) => &joined.reads,
            FormKind::Merged(_) => &[],
        }
    }

    /// The number of the merged statement, if there is one. Statements of different handlers with the same
    /// number can be one set.
    pub(crate) fn merges_as(&self) -> Option<usize> {
        match &self.kind {
            FormKind::Joined(_) => None,
            FormKind::Merged(merged) => Some(merged.number()),
        }
    }

    /// Combines rows into one set: as many as possible, from the first. Returns the rows of the set, which
    /// are fewer if some were merged, and the number of rows that they stand for.
    pub(crate) fn combine(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        match &self.kind {
            FormKind::Joined(_) => (rows.iter().map(|row| (*row).clone()).collect(), rows.len()),
            FormKind::Merged(merged) => merged.combine(rows),
        }
    }
}

/// Whether the conditions determine the whole primary key, and so find at most one row.
fn keys_cover(shape: &Shape, primary: &std::collections::BTreeSet<String>) -> bool {
    let (Action::Update { conditions, .. } | Action::Delete { conditions }) = &shape.action else {
        return false;
    };
    let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
    !primary.is_empty() && primary.iter().all(|column| keys.contains(&column))
}
