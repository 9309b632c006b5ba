//! Batch forms: how statements run once for many events.

mod cell;
mod columns;
mod forms;
mod joined;
mod merge;
mod row;
mod set;

#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(crate) use columns::Column;
pub use columns::TableInfo;
pub(crate) use columns::{Kind, TextType};
pub use forms::Forms;
pub(crate) use row::{Row, quoted};
pub(crate) use set::SetForm;
