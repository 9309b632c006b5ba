//! What a projection does with values that its author may not expect.

use std::collections::HashMap;

use crate::batching::{Kind, TableInfo, TextType};
use crate::binding::column_of;
use projection::{Fault, Projection, Source, Statement, Table, Use};

/// The digits of a second that every time of an event has.
const DIGITS: u32 = 6;

/// Warnings about a projection whose tables, by name, have been read from MySQL.
pub(super) fn warnings(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Vec<Fault> {
    let mut warnings = Vec::new();
    for table in &projection.tables {
        let info = tables.get(&table.name);
        warnings.extend(info.into_iter().flat_map(|info| of_keys(table, info)));
    }
    let mut statements: Vec<&Statement> = projection.statements().collect();
    // A file may handle two event types.
    statements.sort_by_key(|statement| statement.id);
    statements.dedup_by_key(|statement| statement.id);
    for statement in statements {
        let mut warn = |reason| warnings.push(warning(statement, reason));
        match &statement.uses {
            Some(uses) => of_times(statement, uses, tables).into_iter().for_each(&mut warn),
            None if projection.strict && !statement.parameters.is_empty() => warn(
                "its values are bound as they are, because its syntax is not understood: MySQL may \
                 change them to fit their columns"
                    .to_owned(),
            ),
            None => {}
        }
    }
    warnings
}

/// Keys whose collation takes different values for one.
fn of_keys(table: &Table, info: &TableInfo) -> Vec<Fault> {
    let mut names: Vec<&String> = info.unique.iter().collect();
    names.sort();
    let merges = |name: &String| {
        let Kind::Text { charset, collation, is, .. } = &info.columns.get(name)?.kind else {
            return None;
        };
        // CHAR keeps no trailing spaces, so a collation cannot merge them.
        let is_exact = collation.ends_with("_0900_bin")
            || (collation.ends_with("_bin") && *is == TextType::Char);
        if is_exact {
            return None;
        }
        let such = if collation.ends_with("_bin") { "'a' and 'a '" } else { "'a' and 'A'" };
        let better = match charset.as_str() {
            "utf8mb4" => "utf8mb4_0900_bin".to_owned(),
            other if collation.ends_with("_bin") => format!("utf8mb4_0900_bin instead of {other}"),
            other => format!("{other}_bin"),
        };
        Some(warning(
            &table.create,
            format!(
                "the collation {collation} of the key column {name} can take different values, such as \
                 {such}, for one key: use COLLATE {better}"
            ),
        ))
    };
    names.into_iter().filter_map(merges).collect()
}

/// Times of the event that a column rounds.
fn of_times(
    statement: &Statement,
    uses: &[Use],
    tables: &HashMap<String, TableInfo>,
) -> Vec<String> {
    let rounded = |(how, parameter): (&Use, &projection::Parameter)| {
        let Use::Stored(column) = how else { return None };
        let is_time = matches!(parameter.source, Source::OccurredAt | Source::RecordedAt);
        let (kind, name) = column_of(column, tables).filter(|_| is_time)?;
        Some(match kind {
            Kind::Time { fraction } if fraction < DIGITS => {
                format!("{name} rounds {parameter} to fewer digits of a second: use DATETIME(6)")
            }
            Kind::Timestamp { fraction } if fraction < DIGITS => {
                format!("{name} rounds {parameter} to fewer digits of a second: use TIMESTAMP(6)")
            }
            Kind::Date => format!(
                "{name} is a DATE, for which MySQL rounds the last half second of a day up: use \
                 DATE({parameter})"
            ),
            _ => return None,
        })
    };
    uses.iter().zip(&statement.parameters).filter_map(rounded).collect()
}

fn warning(statement: &Statement, reason: String) -> Fault {
    Fault { file: statement.file.to_path_buf(), line: Some(statement.line), reason }
}
