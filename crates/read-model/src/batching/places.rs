//! Writes what stands in a place of a statement that decides its type: the new value of a column, or a
//! parameter beside a column.

use projection::{Class, NotBatchable, Term};

use super::cell::{CellKind, natural};
use super::cells::{Accepts, Cell};
use super::columns::{Kind, Padding};
use super::joined::CELL;
use super::row::quoted;
use super::terms::Typed;
use super::writer::Writer;

impl<'w> Writer<'w> {
    /// Notes that a column equals a cell.
    pub(super) fn pin(&mut self, column: &str, cell: &str) {
        let number = cell.strip_prefix(CELL).and_then(|number| number.parse().ok());
        self.pins.extend(number.map(|number| (column.to_owned(), number)));
    }

    /// The new value of a column.
    pub(super) fn assigned(&mut self, column: &str, value: &Term) -> Result<Typed, NotBatchable> {
        let kind = self.kind(column)?;
        match value {
            Term::Parameter(index) => {
                let natural = natural(self.statement.parameters[*index].source);
                let class = match kind {
                    Kind::Integer { .. } => Class::Integer,
                    Kind::Decimal { .. } => Class::Number,
                    _ => Class::Text,
                };
                let other = match kind {
                    Kind::Enum(_) | Kind::Set(_) if natural.is_none() => Some(Accepts::Texts),
                    _ => None,
                };
                if let Some(accepts) = other {
                    return Ok((self.cell(Cell::text(*index, accepts)), class));
                }
                let kind = natural.or_else(|| CellKind::of(kind).map(CellKind::stored));
                let cell = Cell::exact(*index, self.known(*index, kind)?, None);
                let stored_in = self.table.columns.get(column).filter(|_| self.ignores).cloned();
                Ok((self.cell(Cell { stored_in, ..cell }), class))
            }
            Term::Literal(_) | Term::Column(_) | Term::New(_) => {
                self.lenient = true;
                let typed = self.typed(value, None);
                self.lenient = false;
                typed
            }
            _ => {
                let want = match kind {
                    Kind::Integer { .. } | Kind::Decimal { .. } => Some(Class::Number),
                    Kind::Text { .. } => Some(Class::Text),
                    Kind::Date | Kind::Time { .. } | Kind::Timestamp { .. } => {
                        Some(Class::Temporal)
                    }
                    Kind::Json => Some(Class::Json),
                    _ => None,
                };
                let (sql, class) = self.free_as(value, want)?;
                let keeps = match class {
                    // Its digits depend on the way of execution, and a text would show them.
                    Class::Number => matches!(kind, Kind::Integer { .. } | Kind::Decimal { .. }),
                    Class::Temporal => {
                        matches!(kind, Kind::Date | Kind::Time { .. } | Kind::Timestamp { .. })
                    }
                    _ => true,
                };
                if keeps || !value.has_parameter() {
                    return Ok((sql, class));
                }
                Err(self.because(format!("MySQL would convert the new value of {column}")))
            }
        }
    }

    pub(super) fn free(&mut self, term: &Term) -> Result<Typed, NotBatchable> {
        self.free_as(term, None)
    }

    /// An expression that stands alone.
    pub(super) fn free_as(
        &mut self,
        term: &Term,
        want: Option<Class>,
    ) -> Result<Typed, NotBatchable> {
        self.lenient = !term.has_parameter();
        let typed = self.typed(term, want);
        self.lenient = false;
        typed
    }

    /// A parameter that is compared with a column.
    pub(super) fn compared(
        &mut self,
        column: &str,
        index: usize,
        key: Option<Padding>,
    ) -> Result<String, NotBatchable> {
        let kind = CellKind::of(self.kind(column)?);
        self.exact_cell(index, kind, key)
    }

    /// A parameter that is an operand of arithmetic with a column.
    pub(super) fn added(&mut self, column: &str, index: usize) -> Result<Typed, NotBatchable> {
        let natural = natural(self.statement.parameters[index].source);
        let kind = self.kind(column)?;
        let class = match kind {
            Kind::Integer { .. } => Class::Integer,
            _ => Class::Number,
        };
        let cell = match (kind, natural) {
            (Kind::Integer { .. } | Kind::Decimal { .. }, None | Some(CellKind::Integer)) => {
                CellKind::of(kind)
            }
            _ => None,
        };
        Ok((self.exact_cell(index, cell, None)?, class))
    }

    pub(super) fn exact_cell(
        &mut self,
        index: usize,
        kind: Option<CellKind>,
        key: Option<Padding>,
    ) -> Result<String, NotBatchable> {
        let kind = self.known(index, kind)?;
        Ok(self.cell(Cell::exact(index, kind, key)))
    }

    /// The type of a parameter, if its place decides it.
    fn known(&self, index: usize, kind: Option<CellKind>) -> Result<CellKind, NotBatchable> {
        let parameter = &self.statement.parameters[index];
        kind.ok_or_else(|| NotBatchable {
            place: self.statement.places[index],
            reason: format!("the type of {parameter} does not follow from its place"),
        })
    }

    pub(super) fn cell(&mut self, cell: Cell) -> String {
        let index = self.cells.iter().position(|known| *known == cell).unwrap_or_else(|| {
            self.cells.push(cell);
            self.cells.len() - 1
        });
        format!("{CELL}{index}")
    }

    pub(super) fn column(&self, column: &str) -> Result<String, NotBatchable> {
        self.kind(column)?;
        if let Some(stored) = self.changed.get(column) {
            return Ok(stored.clone());
        }
        Ok(format!("{}.{}", quoted(&self.shape.table), quoted(column)))
    }

    pub(super) fn kind(&self, column: &str) -> Result<&'w Kind, NotBatchable> {
        match self.table.columns.get(column) {
            None => Err(self.because(format!("{} has no column {column}", self.shape.table))),
            Some(column) => Ok(&column.kind),
        }
    }

    pub(super) fn because(&self, reason: impl Into<String>) -> NotBatchable {
        NotBatchable { place: self.here, reason: reason.into() }
    }

    /// The value that a column has after its assignment. An UPDATE of one table assigns from left to right;
    /// with a join, MySQL guarantees no order.
    pub(super) fn stored(
        &self,
        column: &str,
        value: &str,
        class: Class,
    ) -> Result<String, NotBatchable> {
        match (self.kind(column)?, class) {
            (Kind::Integer { min, .. }, Class::Integer) if *min < 0 => {
                Ok(format!("CAST({value} AS SIGNED)"))
            }
            (Kind::Decimal { digits, scale }, Class::Integer | Class::Number) => {
                Ok(format!("CAST({value} AS DECIMAL({digits}, {scale}))"))
            }
            _ => Err(self.because(format!(
                "it uses {column} after assigning it: assign {column} last, to read its previous value"
            ))),
        }
    }
}
