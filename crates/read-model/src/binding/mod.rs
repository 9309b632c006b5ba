//! The types in which the values of an event are bound.
//!
//! MySQL converts a value to the type of the column that receives it. Some of these conversions change the
//! value without an error: `true` becomes '1' in a VARCHAR, "0" becomes '' in an ENUM, "1" becomes a number
//! in a JSON column. Others fail although the value fits, such as 2026-01-31T12:00:00Z in a DATETIME. So
//! each value is converted here first, for the column that it meets, and refused if the column would change
//! it.
//!
//! **Invariant:** a set and its events one by one bind the same values.

mod fit;
mod time;

use std::collections::HashMap;

use domain_events::StoredEvent;
use projection::{BindError, ColumnName, Place, Projection, Source, Statement, Use, Value};

use self::fit::Misfit;
use crate::batching::{Kind, TableInfo};

/// The bindings of a projection's statements, derived from its tables in service.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    /// The bindings of each statement's parameters, by the id of the statement.
    statements: HashMap<usize, Vec<Binding>>,
    /// Whether a value is refused that its column would change.
    strict: bool,
}

/// How the value of one parameter is converted before it is bound.
#[derive(Debug)]
enum Binding {
    /// Not at all.
    Keep,
    /// To the type of the column that stores it. The name is that of the column, with its table.
    Stored(Kind, String),
    /// To text that the column may store.
    Chosen(Kind),
    /// To the type of the column that it is compared with.
    Compared(Kind),
    /// From text to a number.
    Number,
    /// From text with a time zone to a time.
    Time,
    /// To JSON.
    Json,
}

/// Why a value cannot be bound. The message names the parameter and the column, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unbindable {
    /// The event does not have it, or MySQL cannot hold it.
    #[error(transparent)]
    Value(#[from] BindError),
    /// Its column would change it.
    #[error(
        "{parameter} {misfit} ({column}): convert it in the handler, or set strict = false in \
         projection.toml"
    )]
    Changed { parameter: String, column: String, misfit: Misfit },
}

impl Bindings {
    /// Derives the bindings from the columns of the tables, by table name.
    pub(crate) fn of_tables(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Self {
        let bindings = |it: &Statement| {
            let uses = it.uses.iter().flatten();
            let parameters = it.parameters.iter().map(|parameter| parameter.source);
            let bindings = uses.zip(parameters).map(|(how, source)| binding(how, source, tables));
            (it.id, bindings.collect())
        };
        let strict = projection.strict;
        Self { statements: projection.statements().map(bindings).collect(), strict }
    }

    /// The values of a statement's parameters for an event.
    ///
    /// # Errors
    ///
    /// The first value that the event lacks, that MySQL cannot hold, or that a column would change.
    pub(crate) fn bind(
        &self,
        statement: &Statement,
        event: &StoredEvent,
    ) -> Result<Vec<Value>, Unbindable> {
        let values = statement.bind(event)?;
        let Some(bindings) = self.statements.get(&statement.id).filter(|all| !all.is_empty())
        else {
            return Ok(values);
        };
        let all = values.into_iter().zip(bindings).zip(&statement.parameters);
        all.map(|((value, binding), parameter)| match binding.convert(value) {
            Ok(value) => Ok(value),
            Err((value, ..)) if !self.strict => Ok(value),
            Err((_, misfit, column)) => {
                let parameter = parameter.to_string();
                Err(Unbindable::Changed { parameter, column: column.to_owned(), misfit })
            }
        })
        .collect()
    }
}

impl Binding {
    /// The value to bind. If its column would change it, the value, the reason and the column.
    fn convert(&self, value: Value) -> Result<Value, (Value, Misfit, &str)> {
        Ok(match self {
            _ if value == Value::Null => value,
            Self::Keep => value,
            Self::Stored(kind, column) => {
                return fit::stored(value, kind)
                    .map_err(|(value, misfit)| (value, misfit, &**column));
            }
            Self::Chosen(kind) => fit::chosen(value, kind),
            Self::Compared(kind) => fit::compared(value, kind),
            Self::Number => fit::number(value),
            Self::Time => time::zoned(value),
            Self::Json => fit::json(value),
        })
    }
}

/// How a parameter is bound, from its use and the part of the event that it names.
fn binding(how: &Use, source: Source, tables: &HashMap<String, TableInfo>) -> Binding {
    // These attributes of an event have a type of their own, which the author knows.
    let has_type = matches!(
        source,
        Source::StreamVersion
            | Source::SchemaVersion
            | Source::Position
            | Source::OccurredAt
            | Source::RecordedAt
    );
    match how {
        Use::Json => Binding::Json,
        Use::Stored(column) => match column_of(column, tables) {
            Some((kind, name)) if !has_type || kind == Kind::Json => Binding::Stored(kind, name),
            _ => Binding::Keep,
        },
        _ if !matches!(source, Source::Data | Source::Metadata) => Binding::Keep,
        Use::Added(column) => match column_of(column, tables) {
            Some((kind @ (Kind::Integer { .. } | Kind::Decimal { .. }), name)) => {
                Binding::Stored(kind, name)
            }
            Some((Kind::Float, _)) => Binding::Number,
            _ => Binding::Keep,
        },
        Use::Chosen { column, is_compared } => match column_of(column, tables) {
            Some((Kind::Json, _)) if *is_compared => Binding::Keep,
            found => found.map_or(Binding::Keep, |(kind, _)| Binding::Chosen(kind)),
        },
        Use::Compared(column) => {
            column_of(column, tables).map_or(Binding::Keep, |(kind, _)| Binding::Compared(kind))
        }
        Use::Number => Binding::Number,
        Use::Time => Binding::Time,
        Use::Free => Binding::Keep,
    }
}

/// The type and the name of a column, or `None` if it may be one of several columns with different types.
pub(crate) fn column_of(
    column: &ColumnName,
    tables: &HashMap<String, TableInfo>,
) -> Option<(Kind, String)> {
    let found = |table: &String| {
        let info = tables.get(table)?;
        let name = match &column.place {
            Place::Named(name) => name,
            Place::At(index) => info.visible.get(*index)?,
        };
        Some((info.columns.get(name)?.kind.clone(), format!("{table}.{name}")))
    };
    let mut found = column.tables.iter().filter_map(found);
    let first = found.next()?;
    found.all(|(kind, _)| kind == first.0).then_some(first)
}
