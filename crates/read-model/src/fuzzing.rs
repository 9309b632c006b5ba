//! Properties that hold for every projection. Tests run them with the seeds, `cargo xtask fuzz` with random
//! inputs.

use std::collections::{BTreeSet, HashMap};

use domain_events::StoredEvent;
use projection::fuzzing::{columns, placeholders};
use projection::{Projection, Statement, Table};

use crate::batching::{Column, Forms, Kind, SetForm, TableInfo, TextType};
use crate::binding::Bindings;

/// Loads a projection, binds an event to each of its statements, and writes the statements for sets.
///
/// The input lists files; a line `== name` precedes the content of each.
///
/// # Panics
///
/// When a property does not hold.
pub fn projection(input: &[u8]) {
    projection::fuzzing::projection(input, run_sets);
}

/// Checks each batch form, up to the SQL and the values that MySQL would receive.
fn run_sets(projection: &Projection, event: &StoredEvent) {
    let table = |table: &Table| (table.name.clone(), table_info(&table.create));
    let tables: HashMap<_, _> = projection.tables.iter().map(table).collect();
    let forms = Forms::of_tables(projection, &tables);
    let bindings = Bindings::of_tables(projection, &tables);
    forms.lock_mode_text();
    drop(forms.stream_columns(projection));
    for (_, handler) in projection.handlers() {
        let own = forms.of(handler).map(|own| own.forms).unwrap_or_default();
        for (form, statement) in own.into_iter().zip(&handler.statements) {
            run_set(form, &bindings, statement, event);
        }
    }
}

fn run_set(form: &SetForm, bindings: &Bindings, statement: &Statement, event: &StoredEvent) {
    let sql = form.sql();
    assert_eq!(placeholders(sql.as_str()).len(), 1, "{}", sql.as_str());
    let values = bindings.bind(statement, event).ok();
    let row = values.and_then(|values| form.row(&values));
    if let Some(row) = row {
        let (rows, count) = form.combine(&[&row, &row]);
        assert!((1..=2).contains(&count) && (1..=count).contains(&rows.len()));
    }
}

/// An approximation of what MySQL would report about a table. The first column is the primary key.
fn table_info(create: &Statement) -> TableInfo {
    let columns = columns(create);
    let key: BTreeSet<_> = columns.iter().take(1).map(|(name, _)| name.clone()).collect();
    let column = |(name, data_type): &(String, String)| {
        (name.clone(), Column { kind: kind(data_type), is_nullable: true, is_generated: false })
    };
    TableInfo {
        columns: columns.iter().map(column).collect(),
        visible: columns.iter().map(|(name, _)| name.clone()).collect(),
        primary: key.clone(),
        unique_indexes: vec![key.clone()],
        unique: key,
        ..TableInfo::default()
    }
}

fn kind(data_type: &str) -> Kind {
    match data_type.split('(').next().unwrap_or_default() {
        "int" | "bigint" => Kind::Integer { min: i64::MIN.into(), max: i64::MAX.into() },
        "decimal" => Kind::Decimal { digits: 14, scale: 2 },
        "char" | "varchar" | "text" => Kind::Text {
            length: 64,
            charset: "utf8mb4".to_owned(),
            collation: "utf8mb4_0900_bin".to_owned(),
            is: TextType::Varchar,
        },
        "json" => Kind::Json,
        "date" => Kind::Date,
        "datetime" => Kind::Time { fraction: 6 },
        other => Kind::Other(other.to_owned()),
    }
}
