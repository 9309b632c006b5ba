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
//!
//! **Invariant:** a set has the same effects as its events one by one, or it fails and its events run one
//! by one. A value that the type of its column does not hold exactly never joins a set.
//! (`sets_give_what_their_events_give_one_by_one`)

use std::collections::HashMap;

use sqlx::SqlStr;

use super::columns::TableInfo;
use super::joined::Joined;
use super::merge::Merged;
use super::row::{Row, batchable};
use projection::{Action, Condition, Shape, Source, Statement, Term, Value};

/// The batch form of a statement.
#[derive(Debug, Clone)]
pub struct SetForm {
    kind: FormKind,
    /// The owner of the changed rows, if events of other streams never change them.
    pub owner: Option<Owner>,
    /// Whether each event must find exactly one row of the table.
    pub expects_one_row: bool,
}

/// The owner of the rows that a statement changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The stream of the event. This column contains its id.
    Stream(String),
    /// The event itself.
    Event,
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
    pub fn of(
        statement: &Statement,
        tables: &HashMap<String, TableInfo>,
        merged: Option<Merged>,
    ) -> Result<Self, String> {
        let (shape, table) = batchable(statement, tables)?;
        let expects_one_row = match statement.rows {
            None => false,
            Some(1) if keys_cover(shape, &table.primary) => true,
            Some(_) => {
                return Err(
                    "only `rows = 1` with the whole primary key in WHERE is batchable".to_owned()
                );
            }
        };
        let kind = match merged {
            Some(merged) => FormKind::Merged(merged),
            None => FormKind::Joined(Joined::of(statement, shape, table)?),
        };
        Ok(Self { kind, owner: owner(statement, shape, table), expects_one_row })
    }

    /// Its SQL, with one parameter: the rows as a JSON array.
    pub fn sql(&self) -> SqlStr {
        match &self.kind {
            FormKind::Joined(joined) => joined.sql.clone(),
            FormKind::Merged(merged) => merged.sql(),
        }
    }

    /// The row of an event, or `None` if the type of a column does not hold its value exactly.
    pub fn row(&self, values: &[Value]) -> Option<Row> {
        match &self.kind {
            FormKind::Joined(joined) => joined.row(values),
            FormKind::Merged(merged) => merged.row(values),
        }
    }

    /// Whether one set may contain several events of one stream.
    pub fn keeps_order(&self) -> bool {
        match &self.kind {
            FormKind::Joined(joined) => !joined.one_row_per_key,
            FormKind::Merged(_) => true,
        }
    }

    /// The number of the merged statement, if there is one. Statements of different handlers with the same
    /// number can be one set.
    pub fn merges_as(&self) -> Option<usize> {
        match &self.kind {
            FormKind::Joined(_) => None,
            FormKind::Merged(merged) => Some(merged.number()),
        }
    }

    /// Combines rows into one set: as many as possible, from the first. Returns the rows of the set, which
    /// are fewer if some were merged, and the number of rows that they stand for.
    pub fn combine(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        match &self.kind {
            FormKind::Joined(joined) => joined.combine(rows),
            FormKind::Merged(merged) => merged.combine(rows),
        }
    }
}

/// The owner of the rows that a statement changes. If conditions name both the stream and the event, it is
/// the stream.
fn owner(statement: &Statement, shape: &Shape, table: &TableInfo) -> Option<Owner> {
    let owns = |column: &String, term: &Term| {
        let exact =
            table.columns.get(column).is_some_and(|column| column.kind.exact_key().is_some());
        let Term::Parameter(index) = term else { return None };
        match statement.parameters[*index].source {
            Source::StreamId if exact => Some(Owner::Stream(column.clone())),
            Source::EventId if exact => Some(Owner::Event),
            _ => None,
        }
    };
    let owners: Vec<Owner> = match &shape.action {
        Action::Insert { cells, .. } => cells
            .iter()
            .filter(|(column, _)| table.primary.contains(column))
            .filter_map(|(column, term)| owns(column, term))
            .collect(),
        Action::Update { conditions, .. } | Action::Delete { conditions } => conditions
            .iter()
            .filter_map(|condition| match condition {
                Condition::Compare(Term::Column(column), "=", term)
                | Condition::Compare(term, "=", Term::Column(column)) => owns(column, term),
                _ => None,
            })
            .collect(),
    };
    let stream = owners.iter().find(|owner| matches!(owner, Owner::Stream(_)));
    stream.or(owners.first()).cloned()
}

/// Whether the conditions determine the whole primary key, and so find at most one row.
fn keys_cover(shape: &Shape, primary: &std::collections::BTreeSet<String>) -> bool {
    let (Action::Update { conditions, .. } | Action::Delete { conditions }) = &shape.action else {
        return false;
    };
    let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
    !primary.is_empty() && primary.iter().all(|column| keys.contains(&column))
}
