//! One statement for many events.
//!
//! A handler is written for one event. Where its statement has a [`Shape`], the same can be said for
//! many events at once: the statement is joined to a table of their values, which comes as one JSON
//! parameter, so that its text is the same for any number of events and prepared once.
//!
//! ```sql
//! UPDATE customers SET paid = paid + ? WHERE id = ?
//!
//! UPDATE customers JOIN JSON_TABLE(?, '$[*]' COLUMNS (…)) AS events
//!    SET paid = paid + events.projector__0 WHERE id = events.projector__1
//! ```
//!
//! **Invariant:** a set gives what its events give one by one, or fails as a whole and is then done one
//! by one. A value that the type of its column does not hold exactly never goes into a set. A property
//! test compares both ways.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::str::FromStr;

use bigdecimal::{BigDecimal, Zero};
use chrono::NaiveDateTime;
use serde_json::Value as Json;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::columns::{Kind, Padding, TableInfo};
use crate::projection::{Action, Condition, Shape, Source, Statement, Term, Value};

/// Longer texts are not worth a type of their own.
const VARCHAR_MAX: u64 = 4_096;

/// A statement for many events.
#[derive(Debug, Clone)]
pub(crate) struct SetForm {
    /// With one parameter: the rows, as JSON.
    pub(super) sql: SqlStr,
    cells: Vec<Cell>,
    repeats: Repeats,
    /// Whether each event changes rows that belong to its stream alone.
    pub(crate) is_owned: bool,
    /// Whether each row must find exactly one row of the table.
    pub(crate) finds_one: bool,
}

/// What to do with events that change the same row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeats {
    /// MySQL takes the rows in their order, so that nothing is to do.
    InOrder,
    /// They become one: the cells say how.
    Folded,
    /// They go into different sets.
    Apart,
}

/// A column of the table of values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    from: From,
    kind: CellKind,
    role: Role,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Parameter(usize),
    Constant(BigDecimal),
}

/// What a cell is for, in an update whose events can be folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It tells which row is changed.
    Key(Padding),
    /// It is added.
    Sum,
    /// It overwrites.
    Last,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum CellKind {
    Integer,
    Decimal { digits: u32, scale: u32 },
    Text { length: u64, charset: String, collation: Option<String> },
    Json,
    Date,
    Time { fraction: u32 },
}

/// The values of one event, as they go into a set.
pub(crate) type Row = Vec<Json>;

impl SetForm {
    /// The form of a statement for many events, or why there is none.
    pub(crate) fn of(
        statement: &Statement,
        tables: &HashMap<String, TableInfo>,
    ) -> Result<Self, String> {
        let shape = statement.shape.as_ref().map_err(Clone::clone)?;
        let table = tables
            .get(&shape.table)
            .ok_or_else(|| format!("{} is no table of this projection", shape.table))?;
        if let Some(reason) = &table.entangled {
            return Err(reason.clone());
        }
        let mut writer = Writer { statement, shape, table, cells: Vec::new() };
        let (body, repeats) = match &shape.action {
            Action::Insert { replaces, cells, on_duplicate } => {
                (writer.insert(*replaces, cells, on_duplicate)?, Repeats::InOrder)
            }
            Action::Update { assignments, conditions } => writer.update(assignments, conditions)?,
            Action::Delete { conditions } => (writer.delete(conditions)?, Repeats::InOrder),
        };
        let cells = writer.cells;
        let is_owned = is_owned(statement, shape, table);
        let finds_one = match statement.rows {
            None => false,
            Some(1) if keys_cover(shape, &table.primary) => true,
            Some(_) => return Err("rows are counted that are not found by primary key".to_owned()),
        };
        let sql = body.replace(VALUES, &values(&cells));
        Ok(Self { sql: AssertSqlSafe(sql).into_sql_str(), cells, repeats, is_owned, finds_one })
    }

    /// Its SQL.
    pub(crate) fn sql(&self) -> SqlStr {
        self.sql.clone()
    }

    /// The values of an event, or `None` when a value is not exact in the type of its column.
    pub(crate) fn row(&self, values: &[Value]) -> Option<Row> {
        let encode = |cell: &Cell| match &cell.from {
            From::Parameter(index) => cell.kind.encode(values.get(*index)?),
            From::Constant(number) => cell.kind.encode(&Value::Decimal(number.clone())),
        };
        self.cells.iter().map(encode).collect()
    }

    /// Whether events of one stream can follow each other in one set.
    pub(crate) fn keeps_order(&self) -> bool {
        self.repeats != Repeats::Apart
    }

    /// How many of the rows, from the first on, can be one set; folded where they can be.
    pub(crate) fn gather(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        match self.repeats {
            Repeats::InOrder => (rows.iter().map(|row| (*row).clone()).collect(), rows.len()),
            Repeats::Folded => self.fold(rows),
            Repeats::Apart => {
                let mut seen = HashSet::new();
                let fresh = rows.iter().take_while(|row| seen.insert(self.key(row)));
                let gathered: Vec<Row> = fresh.map(|row| (*row).clone()).collect();
                let count = gathered.len();
                (gathered, count)
            }
        }
    }

    fn fold(&self, rows: &[&Row]) -> (Vec<Row>, usize) {
        let mut folded: Vec<Row> = Vec::new();
        let mut places: HashMap<Vec<String>, usize> = HashMap::new();
        for (count, row) in rows.iter().enumerate() {
            let place = *places.entry(self.key(row)).or_insert(folded.len());
            let Some(known) = folded.get_mut(place) else {
                folded.push((*row).clone());
                continue;
            };
            let Some(both) = self.fold_two(known, row) else { return (folded, count) };
            *known = both;
        }
        (folded, rows.len())
    }

    /// One row with the effect of two; `None` when it might fail where the two would not, or the
    /// other way round.
    fn fold_two(&self, first: &Row, second: &Row) -> Option<Row> {
        let cells = self.cells.iter().zip(first.iter().zip(second));
        cells
            .map(|(cell, (first, second))| match cell.role {
                Role::Key(_) => Some(first.clone()),
                // Another value might be one that its column does not take.
                Role::Last if first == second || cell.is_time(first) => Some(second.clone()),
                Role::Last => None,
                Role::Sum => sum(first, second),
            })
            .collect()
    }

    fn key(&self, row: &Row) -> Vec<String> {
        let cells = self.cells.iter().zip(row);
        cells
            .filter_map(|(cell, value)| match (cell.role, value) {
                (Role::Key(Padding::Spaces), Json::String(text)) => {
                    Some(format!("\"{}", text.trim_end_matches(' ')))
                }
                (Role::Key(_), Json::String(text)) => Some(format!("\"{text}")),
                (Role::Key(_), other) => Some(other.to_string()),
                _ => None,
            })
            .collect()
    }
}

impl Cell {
    fn is_time(&self, value: &Json) -> bool {
        matches!(self.kind, CellKind::Time { .. }) && !value.is_null()
    }
}

/// Adds amounts of one sign; then the sum is in range exactly when each step is.
fn sum(first: &Json, second: &Json) -> Option<Json> {
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
            let zero = BigDecimal::zero();
            let same = (first >= zero) == (second >= zero) || first == zero || second == zero;
            same.then(|| Json::String((first + second).to_plain_string()))
        }
        _ => None,
    }
}

/// Stands for the table of values until its columns are known.
const VALUES: &str = "\u{0}";

/// The table of values. A value that cannot be read fails the statement instead of being NULL.
fn values(cells: &[Cell]) -> String {
    if cells.is_empty() {
        // As many rows as there are events.
        return "JSON_TABLE(?, '$[*]' COLUMNS (projector__0 FOR ORDINALITY)) AS events".to_owned();
    }
    let mut columns = String::new();
    for (index, cell) in cells.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        // Sums may be longer than what the column holds; the column has the last word.
        let kind = match (&cell.kind, cell.role) {
            (CellKind::Decimal { scale, .. }, Role::Sum) => format!("DECIMAL(65, {scale})"),
            (kind, _) => kind.sql(),
        };
        write!(columns, "{separator}projector__{index} {kind} PATH '$[{index}]' ERROR ON ERROR")
            .expect("writing to a String cannot fail");
    }
    format!("JSON_TABLE(?, '$[*]' COLUMNS ({columns})) AS events")
}

/// Writes one form.
struct Writer<'w> {
    statement: &'w Statement,
    shape: &'w Shape,
    table: &'w TableInfo,
    cells: Vec<Cell>,
}

/// Where a parameter stands.
#[derive(Clone, Copy)]
enum Place<'p> {
    /// Alone, as the new value of a column.
    Assigned(&'p Kind),
    /// As something added to a column.
    Added(&'p Kind),
    /// Compared with a column.
    Compared(&'p Kind),
    /// Somewhere else.
    Free,
}

impl<'w> Writer<'w> {
    fn insert(
        &mut self,
        replaces: bool,
        cells: &[(String, Term)],
        on_duplicate: &[(String, Term)],
    ) -> Result<String, String> {
        let verb = if replaces { "REPLACE" } else { "INSERT" };
        let columns: Vec<String> = cells.iter().map(|(column, _)| quoted(column)).collect();
        let mut values = Vec::new();
        for (column, term) in cells {
            if term.has_column() {
                return Err(format!("the value of {column} depends on another column"));
            }
            let kind = self.kind(column)?;
            values.push(self.term(term, Place::Assigned(kind), Role::Last)?);
        }
        let table = quoted(&self.shape.table);
        let mut sql = format!(
            "{verb} INTO {table} ({}) SELECT {} FROM {VALUES}",
            columns.join(", "),
            values.join(", ")
        );
        for (index, (column, term)) in on_duplicate.iter().enumerate() {
            let kind = self.kind(column)?;
            let term = self.term(term, Place::Assigned(kind), Role::Last)?;
            let separator = if index == 0 { " ON DUPLICATE KEY UPDATE" } else { "," };
            write!(sql, "{separator} {table}.{} = {term}", quoted(column))
                .expect("writing to a String cannot fail");
        }
        Ok(sql)
    }

    fn update(
        &mut self,
        assignments: &[(String, Term)],
        conditions: &[Condition],
    ) -> Result<(String, Repeats), String> {
        let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
        for (column, _) in assignments {
            if keys.contains(&column) || self.table.unique.contains(column) {
                return Err(format!("it changes {column}, which tells rows apart"));
            }
        }
        for (index, (_, term)) in assignments.iter().enumerate() {
            let before = &assignments[..index];
            // An UPDATE of one table assigns from left to right; one with a join does not.
            if let Some((column, _)) = before.iter().find(|(column, _)| term.mentions(column)) {
                return Err(format!("it uses {column} after it has assigned it"));
            }
        }
        let only_keys = keys.len() == conditions.len();
        let foldable = only_keys
            && !self.table.has_checks
            && assignments.iter().all(|(column, term)| term.folds(column));
        let mut sets = Vec::new();
        for (column, term) in assignments {
            let kind = self.kind(column)?;
            let target = format!("{}.{}", quoted(&self.shape.table), quoted(column));
            let value = match term.addend(column) {
                // A constant is a value too, so that two of them can be added.
                Some((sign, addend)) if foldable => {
                    let addend = match addend {
                        Term::Literal(number) => self.constant(number, kind)?,
                        addend => self.term(addend, Place::Added(kind), Role::Sum)?,
                    };
                    format!("{target} {sign} {addend}")
                }
                _ => self.term(term, Place::Assigned(kind), Role::Last)?,
            };
            sets.push(format!("{target} = {value}"));
        }
        let wheres = self.conditions(conditions)?;
        if !self.cells.iter().any(|cell| matches!(cell.role, Role::Key(_))) {
            let reason = "its WHERE has no column = :parameter whose values can be told apart: a key \
                          needs COLLATE utf8mb4_0900_bin, or an integer or a date";
            return Err(reason.to_owned());
        }
        let sql = format!(
            "UPDATE {} JOIN {VALUES} SET {} WHERE {wheres}",
            quoted(&self.shape.table),
            sets.join(", ")
        );
        let all_keys = self.cells.iter().filter(|cell| matches!(cell.role, Role::Key(_))).count();
        let folded = foldable && all_keys == keys.len();
        Ok((sql, if folded { Repeats::Folded } else { Repeats::Apart }))
    }

    fn delete(&mut self, conditions: &[Condition]) -> Result<String, String> {
        let wheres = self.conditions(conditions)?;
        let table = quoted(&self.shape.table);
        Ok(format!("DELETE {table} FROM {table} JOIN {VALUES} WHERE {wheres}"))
    }

    fn conditions(&mut self, conditions: &[Condition]) -> Result<String, String> {
        let mut parts = Vec::new();
        for condition in conditions {
            parts.push(match condition {
                Condition::IsNull(column, negated) => {
                    let not = if *negated { " NOT" } else { "" };
                    format!("{} IS{not} NULL", self.column(column)?)
                }
                Condition::Compare(left, op, right) => {
                    let (left, right) = match (left, right) {
                        (Term::Column(column), other) => {
                            (self.column(column)?, self.compared(column, op, other)?)
                        }
                        (other, Term::Column(column)) => {
                            (self.compared(column, op, other)?, self.column(column)?)
                        }
                        _ => return Err("it compares something else than a column".to_owned()),
                    };
                    format!("{left} {op} {right}")
                }
            });
        }
        Ok(parts.join(" AND "))
    }

    /// What a column is compared with.
    fn compared(&mut self, column: &str, op: &str, term: &Term) -> Result<String, String> {
        let kind = self.kind(column)?;
        let role = match kind.exact_key() {
            Some(padding) if op == "=" && matches!(term, Term::Parameter(_)) => Role::Key(padding),
            _ => Role::Last,
        };
        self.term(term, Place::Compared(kind), role)
    }

    fn term(&mut self, term: &Term, place: Place<'_>, role: Role) -> Result<String, String> {
        Ok(match term {
            Term::Parameter(index) => self.parameter(*index, place, role)?,
            Term::Literal(literal) => literal.clone(),
            Term::Column(column) => self.column(column)?,
            Term::Arithmetic(left, op, right) => {
                let place = match (&**left, &**right) {
                    (Term::Column(column), _) | (_, Term::Column(column)) => {
                        Place::Added(self.kind(column)?)
                    }
                    _ => Place::Free,
                };
                let left = self.term(left, place, role)?;
                format!("({left} {op} {})", self.term(right, place, role)?)
            }
            Term::Call(function, arguments) => {
                let arguments: Result<Vec<_>, _> =
                    arguments.iter().map(|term| self.term(term, Place::Free, role)).collect();
                format!("{function}({})", arguments?.join(", "))
            }
        })
    }

    fn parameter(&mut self, index: usize, place: Place<'_>, role: Role) -> Result<String, String> {
        let parameter = &self.statement.parameters[index];
        let natural = natural(parameter.source);
        let kind = match (place, natural) {
            (Place::Compared(kind), _) => CellKind::of(kind),
            (Place::Added(kind), natural) => match (kind, natural) {
                (Kind::Integer | Kind::Decimal { .. }, None | Some(CellKind::Integer)) => {
                    CellKind::of(kind)
                }
                _ => None,
            },
            (_, Some(natural)) => Some(natural),
            (Place::Assigned(kind), None) => CellKind::of(kind).map(CellKind::stored),
            (Place::Free, None) => None,
        };
        let kind =
            kind.ok_or_else(|| format!("the type of {parameter} is not foreseen where it stands"))?;
        Ok(self.cell(Cell { from: From::Parameter(index), kind, role }))
    }

    fn constant(&mut self, number: &str, kind: &Kind) -> Result<String, String> {
        let unforeseen = || format!("{number} is not a plain number");
        let value = BigDecimal::from_str(number).map_err(|_text| unforeseen())?;
        let kind = match kind {
            Kind::Integer | Kind::Decimal { .. } => CellKind::of(kind).ok_or_else(unforeseen)?,
            _ => return Err(unforeseen()),
        };
        if kind.encode(&Value::Decimal(value.clone())).is_none() {
            return Err(format!("{number} is not exact in its column"));
        }
        Ok(self.cell(Cell { from: From::Constant(value), kind, role: Role::Sum }))
    }

    fn cell(&mut self, cell: Cell) -> String {
        let index = self.cells.iter().position(|known| *known == cell).unwrap_or_else(|| {
            self.cells.push(cell);
            self.cells.len() - 1
        });
        format!("events.projector__{index}")
    }

    fn column(&self, column: &str) -> Result<String, String> {
        self.kind(column)?;
        Ok(format!("{}.{}", quoted(&self.shape.table), quoted(column)))
    }

    fn kind(&self, column: &str) -> Result<&'w Kind, String> {
        match self.table.columns.get(column) {
            None => Err(format!("{} has no column {column}", self.shape.table)),
            Some(kind) => Ok(kind),
        }
    }
}

/// The type of a parameter that has the same for every event.
fn natural(source: Source) -> Option<CellKind> {
    match source {
        Source::StreamId | Source::EventId | Source::EventType => {
            Some(CellKind::Text { length: 255, charset: "utf8mb4".to_owned(), collation: None })
        }
        Source::StreamVersion | Source::SchemaVersion | Source::Position => Some(CellKind::Integer),
        Source::OccurredAt | Source::RecordedAt => Some(CellKind::Time { fraction: 6 }),
        Source::Data | Source::Metadata => None,
    }
}

impl CellKind {
    /// A type that holds exactly what a column holds, and compares in the same way.
    fn of(kind: &Kind) -> Option<Self> {
        Some(match kind {
            Kind::Integer => Self::Integer,
            Kind::Decimal { digits, scale } => Self::Decimal { digits: *digits, scale: *scale },
            Kind::Text { length, charset, collation } => Self::Text {
                length: *length,
                charset: charset.clone(),
                collation: Some(collation.clone()),
            },
            Kind::Json => Self::Json,
            Kind::Date => Self::Date,
            Kind::Time { fraction } => Self::Time { fraction: *fraction },
            Kind::Other(_) => return None,
        })
    }

    /// For a value that is only stored, the column does the conversion of its character set.
    fn stored(self) -> Self {
        match self {
            Self::Text { length, .. } => {
                Self::Text { length, charset: "utf8mb4".to_owned(), collation: None }
            }
            other => other,
        }
    }

    fn sql(&self) -> String {
        match self {
            Self::Integer => "BIGINT".to_owned(),
            Self::Decimal { digits, scale } => format!("DECIMAL({digits}, {scale})"),
            Self::Text { length, charset, collation } => {
                let kind = if *length <= VARCHAR_MAX {
                    format!("VARCHAR({})", length.max(&1))
                } else {
                    "LONGTEXT".to_owned()
                };
                let collate =
                    collation.as_ref().map_or_else(String::new, |name| format!(" COLLATE {name}"));
                format!("{kind} CHARACTER SET {charset}{collate}")
            }
            Self::Json => "LONGTEXT CHARACTER SET utf8mb4".to_owned(),
            Self::Date => "DATE".to_owned(),
            Self::Time { fraction } => format!("DATETIME({fraction})"),
        }
    }

    /// The value as JSON, if this type holds it exactly.
    fn encode(&self, value: &Value) -> Option<Json> {
        match (self, value) {
            (_, Value::Null) => Some(Json::Null),
            (Self::Integer, Value::Integer(number)) => Some(Json::from(*number)),
            (Self::Integer, Value::Boolean(flag)) => Some(Json::from(u8::from(*flag))),
            (Self::Integer, Value::Decimal(number)) if number.is_integer() => {
                number.with_scale(0).to_plain_string().parse::<i64>().ok().map(Json::from)
            }
            (Self::Decimal { digits, scale }, Value::Integer(number)) => {
                decimal(&BigDecimal::from(*number), *digits, *scale)
            }
            (Self::Decimal { digits, scale }, Value::Unsigned(number)) => {
                decimal(&BigDecimal::from(*number), *digits, *scale)
            }
            (Self::Decimal { digits, scale }, Value::Decimal(number)) => {
                decimal(number, *digits, *scale)
            }
            (Self::Decimal { digits, scale }, Value::Text(text)) if is_plain_number(text) => {
                decimal(&BigDecimal::from_str(text).ok()?, *digits, *scale)
            }
            (Self::Text { charset, .. }, Value::Text(text)) => {
                (charset == "utf8mb4" || text.is_ascii()).then(|| Json::from(&**text))
            }
            (Self::Json, Value::Json(text)) => Some(Json::from(&**text)),
            (Self::Date, Value::Text(text)) => is_date(text).then(|| Json::from(&**text)),
            (Self::Time { fraction }, Value::Text(text)) => time(text, *fraction).map(Json::from),
            (Self::Time { fraction: 6 }, Value::Time(time)) => {
                let text = time.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
                // Years of more or fewer than four digits are not MySQL's.
                (text.len() == 26).then(|| Json::from(text))
            }
            _ => None,
        }
    }
}

/// The number as text, if a DECIMAL with so many digits, and so many of them behind the point, holds
/// it exactly.
fn decimal(number: &BigDecimal, digits: u32, scale: u32) -> Option<Json> {
    let number = number.normalized();
    let plain = number.to_plain_string();
    let unsigned = plain.trim_start_matches('-');
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let whole = whole.trim_start_matches('0');
    let fits = fraction.len() <= scale as usize && whole.len() <= (digits - scale) as usize;
    fits.then(|| Json::from(plain))
}

fn is_plain_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let digits = |part: &str| {
        !part.is_empty() && part.len() <= 65 && part.bytes().all(|b| b.is_ascii_digit())
    };
    digits(whole) && digits(fraction)
}

fn is_date(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// A date and a time, written as MySQL does and always with six digits, so that equal times are equal
/// texts.
fn time(text: &str, fraction: u32) -> Option<String> {
    let (date, time) = text.split_at_checked(10)?;
    let time = time.strip_prefix([' ', 'T'])?;
    let digits = time.split_once('.').map_or(0, |(_, digits)| digits.len());
    let (format, plain) = ("%Y-%m-%d %H:%M:%S%.f", time.len() - digits - usize::from(digits > 0));
    if !is_date(date) || plain != 8 || digits > fraction as usize {
        return None;
    }
    let time = NaiveDateTime::parse_from_str(&format!("{date} {time}"), format).ok()?;
    Some(time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

impl Term {
    fn has_column(&self) -> bool {
        self.any_column(&|_| true)
    }

    fn mentions(&self, column: &str) -> bool {
        self.any_column(&|name| name == column)
    }

    fn any_column(&self, wanted: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Column(name) => wanted(name),
            Self::Parameter(_) | Self::Literal(_) => false,
            Self::Arithmetic(left, _, right) => left.any_column(wanted) || right.any_column(wanted),
            Self::Call(_, arguments) => arguments.iter().any(|term| term.any_column(wanted)),
        }
    }

    /// What is added to or taken from a column, where that is all: `column + something`.
    fn addend(&self, column: &str) -> Option<(char, &Self)> {
        match self {
            Self::Arithmetic(left, sign @ ('+' | '-'), right) => match (&**left, &**right) {
                (Self::Column(name), addend @ (Self::Parameter(_) | Self::Literal(_)))
                    if name == column =>
                {
                    Some((*sign, addend))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether assigning this twice is the same as assigning a sum, or the second, once.
    fn folds(&self, column: &str) -> bool {
        self.addend(column).is_some() || !self.has_column()
    }
}

impl Condition {
    /// The column, where this is `column = :parameter`.
    fn key(&self) -> Option<&String> {
        match self {
            Self::Compare(Term::Column(column), "=", Term::Parameter(_))
            | Self::Compare(Term::Parameter(_), "=", Term::Column(column)) => Some(column),
            _ => None,
        }
    }
}

/// Whether the rows that a statement changes belong to the event's stream, or to the event.
fn is_owned(statement: &Statement, shape: &Shape, table: &TableInfo) -> bool {
    let owns = |column: &String, term: &Term| {
        let exact = table.columns.get(column).is_some_and(|kind| kind.exact_key().is_some());
        exact
            && matches!(term, Term::Parameter(index) if matches!(
                statement.parameters[*index].source, Source::StreamId | Source::EventId))
    };
    match &shape.action {
        Action::Insert { cells, .. } => {
            cells.iter().any(|(column, term)| table.primary.contains(column) && owns(column, term))
        }
        Action::Update { conditions, .. } | Action::Delete { conditions } => {
            conditions.iter().any(|condition| match condition {
                Condition::Compare(Term::Column(column), "=", term)
                | Condition::Compare(term, "=", Term::Column(column)) => owns(column, term),
                _ => false,
            })
        }
    }
}

/// Whether the conditions find at most one row.
fn keys_cover(shape: &Shape, primary: &std::collections::BTreeSet<String>) -> bool {
    let (Action::Update { conditions, .. } | Action::Delete { conditions }) = &shape.action else {
        return false;
    };
    let keys: Vec<&String> = conditions.iter().filter_map(Condition::key).collect();
    !primary.is_empty() && primary.iter().all(|column| keys.contains(&column))
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
