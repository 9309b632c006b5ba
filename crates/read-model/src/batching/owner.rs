//! To whom the rows of a statement belong. This does not depend on whether the statement is batchable.

use std::collections::HashMap;

use projection::{NotBatchable, Source, Statement, Touch};

use super::columns::TableInfo;
use super::row::because;

/// The owner of the rows that a statement changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The stream of the event. This column contains its id.
    Stream(String),
    /// The event itself.
    Event,
}

/// The owner of the rows that a statement changes, if it neither reads nor changes rows of other streams. If
/// the rows belong to both the stream and the event, it is the stream.
///
/// # Errors
///
/// The rows that may belong to others.
pub(crate) fn owner(
    statement: &Statement,
    tables: &HashMap<String, TableInfo>,
) -> Result<Owner, NotBatchable> {
    let [changed, reads @ ..] = &*statement.touches else {
        let reason = statement.shape.as_ref().err().map_or("", |because| &because.reason);
        return Err(because(statement, format!("which rows it changes is not known: {reason}")));
    };
    for read in reads {
        if column(statement, read, tables, Source::StreamId)?.is_none() {
            let table = read.table.as_deref().unwrap_or_default();
            let reason = format!(
                "it reads rows of {table} that may belong to several streams: no column in its WHERE \
                 equals :stream_id"
            );
            return Err(NotBatchable { place: read.place, reason });
        }
    }
    if let Some(column) = column(statement, changed, tables, Source::StreamId)? {
        return Ok(Owner::Stream(column));
    }
    if column(statement, changed, tables, Source::EventId)?.is_some() {
        return Ok(Owner::Event);
    }
    let table = changed.table.as_deref().unwrap_or_default();
    let what = if changed.is_insert { "column of its primary key" } else { "column in its WHERE" };
    let reason = format!(
        "the rows that it changes in {table} may belong to several streams: no {what} equals :stream_id"
    );
    Err(NotBatchable { place: changed.place, reason })
}

/// The column that equals a parameter of this source in all rows that a statement touches.
fn column(
    statement: &Statement,
    touch: &Touch,
    tables: &HashMap<String, TableInfo>,
    source: Source,
) -> Result<Option<String>, NotBatchable> {
    let unknown = |reason: String| NotBatchable { place: touch.place, reason };
    let Some(name) = &touch.table else {
        return Err(unknown("which rows it reads and changes is not known".to_owned()));
    };
    let table = tables.get(name).ok_or_else(|| unknown(format!("{name} is not a plain table")))?;
    if let Some(reason) = &table.has_trigger_or_foreign_key {
        return Err(unknown(reason.clone()));
    }
    let owns = |(column, parameter): &&(String, usize)| {
        let exact = |it: &super::columns::Column| it.kind.exact_key().is_some();
        statement.parameters[*parameter].source == source
            && table.columns.get(column).is_some_and(exact)
            && (!touch.is_insert || table.primary.contains(column))
            && (!touch.overwrites || table.distinguishes(column))
    };
    Ok(touch.pins.iter().find(owns).map(|(column, _)| column.clone()))
}
