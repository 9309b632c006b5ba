//! The columns of a projection's tables, as MySQL has them.

use std::collections::{BTreeSet, HashMap};

use sqlx::query_as;

use super::session::within;
use super::{Error, Session};

/// What there is to know of a table to foresee what statements do to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TableInfo {
    /// By name, in lower case.
    pub(crate) columns: HashMap<String, Kind>,
    /// The columns of the primary key.
    pub(crate) primary: BTreeSet<String>,
    /// The columns of any unique index.
    pub(crate) unique: BTreeSet<String>,
    /// Why its rows are not on their own: a trigger or a foreign key.
    pub(crate) entangled: Option<String>,
    /// Whether it has CHECK constraints.
    pub(crate) has_checks: bool,
}

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any integer type.
    Integer,
    /// `DECIMAL`
    Decimal {
        /// All digits.
        digits: u32,
        /// Those behind the point.
        scale: u32,
    },
    /// `CHAR`, `VARCHAR`, `TEXT` and the like.
    Text {
        /// In characters.
        length: u64,
        /// The character set.
        charset: String,
        /// How it compares.
        collation: String,
    },
    /// `JSON`
    Json,
    /// `DATE`
    Date,
    /// `DATETIME`
    Time {
        /// Digits of the fraction of seconds.
        fraction: u32,
    },
    /// Another type, by its name.
    Other(String),
}

impl Kind {
    /// What a comparison of two keys ignores, if that can be said without asking MySQL.
    pub(crate) fn exact_key(&self) -> Option<Padding> {
        match self {
            Self::Integer | Self::Time { fraction: 6 } | Self::Date => Some(Padding::None),
            Self::Text { collation, .. } if collation.ends_with("_0900_bin") => Some(Padding::None),
            Self::Text { collation, .. } if collation.ends_with("_bin") => Some(Padding::Spaces),
            _ => None,
        }
    }
}

/// What a comparison of texts ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    /// Nothing.
    None,
    /// Trailing spaces.
    Spaces,
}

type ColumnRow =
    (String, String, String, Option<i64>, Option<i64>, Option<i64>, String, String, Option<i64>);

impl Session {
    /// Reads the columns of a table in the current database.
    pub(crate) async fn table_info(&mut self, table: &str) -> Result<TableInfo, Error> {
        let mut info = TableInfo::default();
        let read = query_as(
            "SELECT LOWER(CAST(column_name AS CHAR)), CAST(data_type AS CHAR),
                    CAST(column_type AS CHAR), CAST(numeric_precision AS SIGNED),
                    CAST(numeric_scale AS SIGNED), CAST(character_maximum_length AS SIGNED),
                    COALESCE(CAST(character_set_name AS CHAR), ''),
                    COALESCE(CAST(collation_name AS CHAR), ''), CAST(datetime_precision AS SIGNED)
             FROM information_schema.columns
             WHERE table_schema = DATABASE() AND table_name = ?",
        )
        .bind(table)
        .fetch_all(&mut self.connection);
        let rows: Vec<ColumnRow> = within("reading the columns of a table", read).await?;
        info.columns = rows.into_iter().map(|row| (row.0.clone(), kind(row))).collect();
        let read = query_as(
            "SELECT LOWER(CAST(column_name AS CHAR)), index_name = 'PRIMARY'
             FROM information_schema.statistics
             WHERE table_schema = DATABASE() AND table_name = ? AND non_unique = 0
               AND column_name IS NOT NULL",
        )
        .bind(table)
        .fetch_all(&mut self.connection);
        let rows: Vec<(String, bool)> = within("reading the indexes of a table", read).await?;
        for (column, is_primary) in rows {
            if is_primary {
                info.primary.insert(column.clone());
            }
            info.unique.insert(column);
        }
        let read = query_as(
            "SELECT (SELECT COUNT(*) FROM information_schema.triggers
                     WHERE event_object_schema = DATABASE() AND event_object_table = ?),
                    (SELECT COUNT(*) FROM information_schema.referential_constraints
                     WHERE constraint_schema = DATABASE() AND ? IN (table_name, referenced_table_name)),
                    (SELECT COUNT(*) FROM information_schema.table_constraints
                     WHERE table_schema = DATABASE() AND table_name = ?
                       AND constraint_type = 'CHECK')",
        )
        .bind(table)
        .bind(table)
        .bind(table)
        .fetch_one(&mut self.connection);
        let (triggers, references, checks): (i64, i64, i64) =
            within("reading the constraints of a table", read).await?;
        info.has_checks = checks > 0;
        info.entangled = match (triggers, references) {
            (0, 0) => None,
            (0, _) => Some(format!("{table} has a foreign key")),
            _ => Some(format!("{table} has a trigger")),
        };
        Ok(info)
    }
}

fn kind(row: ColumnRow) -> Kind {
    let (_, data_type, column_type, precision, scale, length, charset, collation, fraction) = row;
    let number =
        |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
    match &*data_type {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => Kind::Integer,
        "decimal" if !column_type.contains("zerofill") => {
            Kind::Decimal { digits: number(precision), scale: number(scale) }
        }
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => {
            let length = length.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
            Kind::Text { length, charset, collation }
        }
        "json" => Kind::Json,
        "date" => Kind::Date,
        "datetime" => Kind::Time { fraction: number(fraction) },
        _ => Kind::Other(column_type),
    }
}
