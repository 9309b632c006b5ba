//! Rows of a table as text, for `projector show`.

use std::fmt;

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Row, query, query_scalar};

use crate::session::within;
use crate::{Error, Session};

/// Rows of a table as text. `Display` aligns the columns.
pub struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Session {
    /// At most `limit` rows of a table.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn first_rows(&mut self, table: &str, limit: u32) -> Result<Rows, Error> {
        let list = query_scalar(
            "SELECT column_name FROM information_schema.columns
             WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position",
        )
        .bind(table);
        let columns: Vec<String> =
            within("listing columns", list.fetch_all(&mut self.connection)).await?;
        if columns.is_empty() {
            return Err(Error::NotMigrated { missing: format!("table {table}") });
        }
        let texts: Vec<_> = columns
            .iter()
            .map(|name| format!("COALESCE(CAST(`{}` AS CHAR), 'NULL')", name.replace('`', "``")))
            .collect();
        let sql = format!("SELECT {} FROM `{table}` LIMIT {limit}", texts.join(", "));
        let select = query(AssertSqlSafe(sql)).persistent(false);
        let rows = within("reading rows", select.fetch_all(&mut self.connection)).await?;
        let text_of = |row: &MySqlRow| {
            (0..columns.len()).map(|index| row.try_get(index)).collect::<Result<Vec<String>, _>>()
        };
        let rows: Result<_, _> = rows.iter().map(text_of).collect();
        Ok(Rows { rows: rows.map_err(|error| Error::of("reading rows", error))?, columns })
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        for row in std::iter::once(&self.columns).chain(&self.rows) {
            write!(f, " ")?;
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, " {cell:<width$} ")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
