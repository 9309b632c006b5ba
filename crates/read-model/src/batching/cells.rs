//! The columns of the table of values of a [`super::joined::Joined`] set.

use projection::Value;
use serde_json::Value as Json;

use super::cell::{CellKind, is_storable};
use super::columns::{Column, Padding};

/// A column of the table of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    /// The index of the parameter.
    pub(super) parameter: usize,
    /// The type of the column.
    pub(super) kind: CellKind,
    /// How its values compare, if a condition uses it as a key.
    pub(super) key: Option<Padding>,
    /// Which values it takes.
    pub(super) accepts: Accepts,
    /// The column that must certainly accept the value. With IGNORE, MySQL would change another value, and the
    /// set and the single statement might change it in different ways.
    pub(super) stored_in: Option<Column>,
}

/// The values that a cell takes. An event with another value runs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepts {
    /// Every value that its type holds exactly.
    Exact,
    /// The same, but only numbers.
    Numbers,
    /// The same, but only texts of at most [`TEXT_MAX`] characters.
    Texts,
    /// Texts that are dates or times in MySQL's notation.
    Moments,
    /// Every value. The cell only tells whether it is NULL.
    Presence,
}

/// The longest text in an expression, in characters.
const TEXT_MAX: u64 = 1_000;

impl Cell {
    /// A cell for the values that a type holds exactly.
    pub(super) fn exact(parameter: usize, kind: CellKind, key: Option<Padding>) -> Self {
        Self { parameter, kind, key, accepts: Accepts::Exact, stored_in: None }
    }

    /// A cell that only tells whether a parameter is NULL.
    pub(super) fn presence(parameter: usize) -> Self {
        Self { accepts: Accepts::Presence, ..Self::exact(parameter, CellKind::Integer, None) }
    }

    /// A cell for a text in an expression.
    pub(super) fn text(parameter: usize, accepts: Accepts) -> Self {
        let kind =
            CellKind::Text { length: TEXT_MAX, charset: "utf8mb4".to_owned(), collation: None };
        Self { parameter, kind, key: None, accepts, stored_in: None }
    }

    /// A cell for a number in an expression. With 12 digits before the decimal point and 6 behind it, even a
    /// product of four is exact.
    pub(super) fn number(parameter: usize) -> Self {
        let kind = CellKind::Decimal { digits: 18, scale: 6 };
        Self { parameter, kind, key: None, accepts: Accepts::Numbers, stored_in: None }
    }

    /// The value of an event, or `None` if the cell does not take it.
    pub(super) fn encode(&self, values: &[Value]) -> Option<Json> {
        let value = self.encode_any(values.get(self.parameter)?)?;
        let fits = self.stored_in.as_ref().is_none_or(|column| is_storable(column, &value));
        fits.then_some(value)
    }

    fn encode_any(&self, value: &Value) -> Option<Json> {
        match (self.accepts, value) {
            (Accepts::Presence, Value::Null) => Some(Json::Null),
            (Accepts::Presence, _) => Some(Json::from(1)),
            (Accepts::Numbers, Value::Text(_)) => None,
            (Accepts::Texts, Value::Text(text)) if text.chars().count() as u64 > TEXT_MAX => None,
            (Accepts::Moments, Value::Text(text)) => {
                let is_time = CellKind::Time { fraction: 6 }.encode(value).is_some();
                let is_moment = is_time || CellKind::Date.encode(value).is_some();
                is_moment.then(|| Json::from(&**text))
            }
            _ => self.kind.encode(value),
        }
    }
}
