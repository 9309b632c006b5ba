//! Rows of a table as text, for `projector show`.

use std::fmt;

use serde::Serialize;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Row, query, query_scalar};

use crate::session::within;
use crate::{Error, Session};

/// Rows of a table, each value as text. `Display` aligns the columns.
#[derive(Serialize)]
pub struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
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
            .map(|name| format!("CAST(`{}` AS CHAR)", name.replace('`', "``")))
            .collect();
        let sql = format!("SELECT {} FROM `{table}` LIMIT {limit}", texts.join(", "));
        let select = query(AssertSqlSafe(sql)).persistent(false);
        let rows = within("reading rows", select.fetch_all(&mut self.connection)).await?;
        let text_of = |row: &MySqlRow| {
            (0..columns.len()).map(|index| row.try_get(index)).collect::<Result<Vec<_>, _>>()
        };
        let rows: Result<_, _> = rows.iter().map(text_of).collect();
        Ok(Rows { rows: rows.map_err(|error| Error::of("reading rows", error))?, columns })
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows.iter().map(|row| {
            row.iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect::<Vec<&str>>()
        });
        let columns = self.columns.iter().map(String::as_str).collect();
        let lines: Vec<Vec<&str>> = std::iter::once(columns).chain(rows).collect();
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        for line in &lines {
            write!(f, " ")?;
            for (cell, width) in line.iter().zip(&widths) {
                write!(f, " {cell:<width$} ")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
