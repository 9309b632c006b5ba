//! Batch forms: how statements run once for many events.

mod calls;
mod cell;
mod cells;
mod columns;
mod forms;
mod joined;
mod merge;
mod owner;
mod places;
mod rounds;
mod row;
mod set;
mod subqueries;
mod terms;
mod writer;

#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(crate) use columns::Column;
pub use columns::TableInfo;
pub(crate) use columns::{Kind, TextType};
pub use forms::Forms;
pub(crate) use forms::HandlerForms;
pub(crate) use row::{Row, quoted};
pub(crate) use set::SetForm;
