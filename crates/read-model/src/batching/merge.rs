//! Merges several updates of a row into one.
//!
//! A statement such as `UPDATE t SET a = :x, b = b + :y, … WHERE k = :z` overwrites columns of a row, or
//! adds to them. Several such changes of one row equal a single change, even if they belong to different
//! handlers. The changes of all rows then run as one statement.
//!
//! **Invariant:** two changes are merged only if the merged change succeeds exactly when both do. Added
//! amounts have the same sign, so an intermediate sum is out of range only if the last one is. An
//! overwritten value is one that its column certainly accepts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::str::FromStr;
use std::sync::Arc;

use bigdecimal::{BigDecimal, Zero};
use serde_json::Value as Json;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::cell::{CellKind, is_storable, natural};
use super::columns::{Column, Kind, Padding, TableInfo};
use super::row::{Row, batchable, key_text, quoted};
use projection::{Action, Assignment, Condition, Statement, Term, Value};

/// The change that one statement makes to the row of a key.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    table: String,
    /// The columns of the key, each with the index of the parameter that it equals.
    keys: BTreeMap<String, usize>,
    /// The change of each column, by its name.
    changes: BTreeMap<String, Change>,
}

/// The change of one column.
#[derive(Debug, Clone)]
enum Change {
    Overwrite(Source),
    Add(Source),
    Subtract(Source),
}

#[derive(Debug, Clone)]
enum Source {
    Parameter(usize),
    Literal(Json),
}

/// The merged statement of a group: statements on the same table with the same key columns.
#[derive(Debug)]
struct Form {
    /// It identifies the form within the projection.
    number: usize,
    sql: SqlStr,
    /// The names of the key columns, in the order of `keys`.
    names: Vec<String>,
    keys: Vec<(CellKind, Padding)>,
    columns: Vec<Target>,
}

/// A changed column, and its places in a row of values.
#[derive(Debug)]
struct Target {
    name: String,
    column: Column,
    kind: CellKind,
    /// The place of the flag that says whether it is overwritten; the new value is at the next place.
    overwrite: Option<usize>,
    /// The place of the amount to add.
    sum: Option<usize>,
}

/// One of the statements that a [`Form`] merges.
#[derive(Debug, Clone)]
pub(crate) struct Merged {
    form: Arc<Form>,
    keys: Vec<usize>,
    /// Its change of each column of the form.
    changes: Vec<Option<Change>>,
}

impl Delta {
    /// The change that a statement makes, or `None` if the statement cannot be merged.
    pub(super) fn of(statement: &Statement, tables: &HashMap<String, TableInfo>) -> Option<Self> {
        let (shape, table) = batchable(statement, tables).ok()?;
        let Action::Update { assignments, conditions } = &shape.action else { return None };
        if table.checks_every_value {
            return None;
        }
        let mut keys = BTreeMap::new();
        for condition in conditions {
            let column = condition.key()?;
            table.columns.get(column)?.kind.exact_key()?;
            let (Condition::Compare(Term::Parameter(index), ..)
            | Condition::Compare(_, _, Term::Parameter(index))) = condition
            else {
                return None;
            };
            keys.insert(column.clone(), *index).is_none().then_some(())?;
        }
        let mut changes = BTreeMap::new();
        for Assignment { column: name, value, .. } in assignments {
            if keys.contains_key(name) || table.unique.contains(name) {
                return None;
            }
            let column = table.columns.get(name)?;
            changes.insert(name.clone(), Change::of(statement, name, column, value)?);
        }
        Some(Self { table: shape.table.clone(), keys, changes })
    }

    /// The table and the key columns. Statements with equal groups can be merged.
    fn group(&self) -> (String, Vec<String>) {
        (self.table.clone(), self.keys.keys().cloned().collect())
    }
}

impl Change {
    fn of(statement: &Statement, name: &str, column: &Column, term: &Term) -> Option<Self> {
        let source = |term: &Term| Source::of(statement, column, term);
        match term.addend(name) {
            Some((sign, addend)) => {
                matches!(column.kind, Kind::Integer { .. } | Kind::Decimal { .. }).then_some(())?;
                let addend = source(addend)?;
                Some(if sign == '+' { Self::Add(addend) } else { Self::Subtract(addend) })
            }
            None => Some(Self::Overwrite(source(term)?)),
        }
    }
}

impl Source {
    /// A parameter or literal that the column stores without conversion.
    fn of(statement: &Statement, column: &Column, term: &Term) -> Option<Self> {
        let kind = cell(&column.kind)?;
        match term {
            Term::Parameter(index) => {
                let natural = natural(statement.parameters[*index].source);
                let fits = matches!(
                    (natural, &kind),
                    (None, _)
                        | (Some(CellKind::Text { .. }), CellKind::Text { .. })
                        | (Some(CellKind::Integer), CellKind::Integer | CellKind::Decimal { .. })
                        | (Some(CellKind::Time { .. }), CellKind::Time { .. })
                );
                fits.then_some(Self::Parameter(*index))
            }
            Term::Literal(literal) => {
                let value = match literal.strip_prefix('\'') {
                    Some(text) => Value::Text(text.strip_suffix('\'')?.to_owned()),
                    None if literal == "NULL" => Value::Null,
                    None => Value::Decimal(BigDecimal::from_str(literal).ok()?),
                };
                let plain = !matches!(&value, Value::Text(text) if text.contains(['\\', '\'']));
                let value = kind.encode(&value).filter(|_| plain)?;
                is_storable(column, &value).then_some(Self::Literal(value))
            }
            _ => None,
        }
    }

    fn value(&self, kind: &CellKind, values: &[Value]) -> Option<Json> {
        match self {
            Self::Parameter(index) => kind.encode(values.get(*index)?),
            Self::Literal(value) => Some(value.clone()),
        }
    }
}

/// The type of the values of a column in a set.
fn cell(kind: &Kind) -> Option<CellKind> {
    match kind {
        // A value may have six digits of a second even if the column has fewer.
        Kind::Time { .. } | Kind::Timestamp { .. } => Some(CellKind::Time { fraction: 6 }),
        Kind::Json | Kind::Other(_) => None,
        other => CellKind::of(other),
    }
}

/// Merges the statements of a projection where possible. Returns the merged statements by their ids.
pub(super) fn merge(
    deltas: &[(usize, Delta)],
    tables: &HashMap<String, TableInfo>,
) -> HashMap<usize, Merged> {
    let mut groups: BTreeMap<_, Vec<&(usize, Delta)>> = BTreeMap::new();
    for delta in deltas {
        groups.entry(delta.1.group()).or_default().push(delta);
    }
    let mut merged = HashMap::new();
    for (number, group) in groups.into_values().enumerate() {
        let all: Vec<&Delta> = group.iter().map(|(_, delta)| delta).collect();
        let Some(form) = tables.get(&all[0].table).and_then(|table| Form::of(number, &all, table))
        else {
            continue;
        };
        let form = Arc::new(form);
        for (statement, delta) in group {
            let changes = form.columns.iter().map(|it| delta.changes.get(&it.name).cloned());
            let (keys, changes) = (delta.keys.values().copied().collect(), changes.collect());
            merged.insert(*statement, Merged { keys, changes, form: Arc::clone(&form) });
        }
    }
    merged
}

impl Form {
    fn of(number: usize, deltas: &[&Delta], table: &TableInfo) -> Option<Self> {
        let mut places = 0..;
        let mut next = |count: usize| places.by_ref().take(count).next();
        let mut fields = Vec::new();
        let mut keys = Vec::new();
        let mut wheres = Vec::new();
        let own = quoted(&deltas[0].table);
        for name in deltas[0].keys.keys() {
            let kind = &table.columns.get(name)?.kind;
            let (cell, place) = (CellKind::of(kind)?, next(1)?);
            fields.push((place, cell.sql()));
            wheres.push(format!("{own}.{} = {}", quoted(name), field(place)));
            keys.push((cell, kind.exact_key()?));
        }
        let mut columns: Vec<Target> = Vec::new();
        let mut sets = Vec::new();
        let names: BTreeSet<&String> =
            deltas.iter().flat_map(|delta| delta.changes.keys()).collect();
        for name in names {
            let changes = || deltas.iter().filter_map(|delta| delta.changes.get(name));
            let column = table.columns.get(name)?.clone();
            let kind = cell(&column.kind)?;
            let target = format!("{own}.{}", quoted(name));
            let (mut overwrite, mut sum, mut value) = (None, None, target.clone());
            if changes().any(|change| matches!(change, Change::Overwrite(_))) {
                let (flag, new) = (next(1)?, next(1)?);
                fields.push((flag, "TINYINT".to_owned()));
                fields.push((new, kind.sql()));
                value = format!("IF({}, {}, {value})", field(flag), field(new));
                overwrite = Some(flag);
            }
            if changes().any(|change| !matches!(change, Change::Overwrite(_))) {
                let place = next(1)?;
                // A sum can have more digits than the column. The assignment to the column then fails, as
                // it must.
                let wide = match &kind {
                    CellKind::Decimal { scale, .. } => format!("DECIMAL(65, {scale})"),
                    other => other.sql(),
                };
                fields.push((place, wide));
                value = format!("{value} + {}", field(place));
                sum = Some(place);
            }
            sets.push(format!("{target} = {value}"));
            columns.push(Target { name: name.clone(), column, kind, overwrite, sum });
        }
        let mut table_of_values = String::new();
        for (place, kind) in fields {
            let separator = if place == 0 { "" } else { ", " };
            let name = format!("projector__{place}");
            write!(table_of_values, "{separator}{name} {kind} PATH '$[{place}]' ERROR ON ERROR")
                .expect("writing to a String cannot fail");
        }
        let sql = format!(
            "UPDATE {own} JOIN JSON_TABLE(?, '$[*]' COLUMNS ({table_of_values})) AS events SET {} WHERE {}",
            sets.join(", "),
            wheres.join(" AND ")
        );
        let names = deltas[0].keys.keys().cloned().collect();
        Some(Self { number, sql: AssertSqlSafe(sql).into_sql_str(), names, keys, columns })
    }

    fn key(&self, row: &Row) -> Vec<String> {
        let keys = self.keys.iter().zip(row);
        keys.map(|((_, padding), value)| key_text(*padding, value)).collect()
    }

    /// The change that has the effect of two, or `None` if it might succeed where one of the two fails.
    fn join(&self, first: &Row, second: &Row) -> Option<Row> {
        let mut both = first.clone();
        for target in &self.columns {
            if let Some(flag) = target.overwrite.filter(|flag| second[*flag] == 1) {
                // The amount added by the first change might be out of range, and overwriting would hide
                // that.
                let added = target.sum.is_some_and(|place| first[place] != zero(&target.kind));
                if added || (first[flag] == 1 && !is_storable(&target.column, &first[flag + 1])) {
                    return None;
                }
                both[flag] = second[flag].clone();
                both[flag + 1] = second[flag + 1].clone();
            }
            if let Some(place) = target.sum {
                both[place] = add(&first[place], &second[place])?;
            }
        }
        Some(both)
    }
}

fn field(place: usize) -> String {
    format!("events.projector__{place}")
}

/// The amount that changes nothing.
fn zero(kind: &CellKind) -> Json {
    match kind {
        CellKind::Decimal { .. } => Json::from("0"),
        _ => Json::from(0),
    }
}

/// Adds two amounts of the same sign; `None` if the signs differ.
fn add(first: &Json, second: &Json) -> Option<Json> {
    match (first, second) {
        (Json::Null, _) | (_, Json::Null) => Some(Json::Null),
        (Json::Number(first), Json::Number(second)) => {
            let (first, second) = (first.as_i64()?, second.as_i64()?);
            let same = first.signum() * second.signum() >= 0;
            first.checked_add(second).filter(|_| same).map(Json::from)
        }
        (Json::String(first), Json::String(second)) => {
            let first = BigDecimal::from_str(first).ok()?;
            let second = BigDecimal::from_str(second).ok()?;
            let same = (first >= BigDecimal::zero()) == (second >= BigDecimal::zero())
                || first.is_zero()
                || second.is_zero();
            same.then(|| Json::from((first + second).to_plain_string()))
        }
        _ => None,
    }
}

fn negated(value: Json) -> Option<Json> {
    match value {
        Json::Null => Some(Json::Null),
        Json::Number(number) => number.as_i64()?.checked_neg().map(Json::from),
        Json::String(text) => {
            Some(Json::from((-BigDecimal::from_str(&text).ok()?).to_plain_string()))
        }
        _ => None,
    }
}

impl Merged {
    pub(crate) fn sql(&self) -> SqlStr {
        self.form.sql.clone()
    }

    pub(crate) fn number(&self) -> usize {
        self.form.number
    }

    /// The columns of the key, with their places in a row.
    pub(crate) fn pins(&self) -> Vec<(String, usize)> {
        self.form.names.iter().cloned().zip(0..).collect()
    }

    /// The row of an event, or `None` if the type of a column does not hold its value exactly.
    pub(crate) fn row(&self, values: &[Value]) -> Option<Row> {
        let mut row = Row::new();
        for (index, (kind, _)) in self.keys.iter().zip(&self.form.keys) {
            row.push(kind.encode(values.get(*index)?)?);
        }
        for (target, change) in self.form.columns.iter().zip(&self.changes) {
            let Target { kind, overwrite, sum, .. } = target;
            if overwrite.is_some() {
                match change {
                    Some(Change::Overwrite(source)) => {
                        row.extend([Json::from(1), source.value(kind, values)?]);
                    }
                    _ => row.extend([Json::from(0), Json::Null]),
                }
            }
            if sum.is_some() {
                row.push(match change {
                    Some(Change::Add(source)) => source.value(kind, values)?,
                    Some(Change::Subtract(source)) => negated(source.value(kind, values)?)?,
                    _ => zero(kind),
                });
            }
        }
        Some(row)
    }

    /// Merges rows with the same key, from the first up to one that cannot be merged. Returns the merged
    /// rows, and the number of rows that they stand for.
    pub(crate) fn combine(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        let mut combined: Vec<Row> = Vec::new();
        let mut places: HashMap<Vec<String>, usize> = HashMap::new();
        for (count, row) in rows.iter().enumerate() {
            let place = *places.entry(self.form.key(row)).or_insert(combined.len());
            match combined.get_mut(place) {
                None => combined.push((*row).clone()),
                Some(known) => match self.form.join(known, row) {
                    Some(both) => *known = both,
                    None => return (combined, count),
                },
            }
        }
        (combined, rows.len())
    }
}
