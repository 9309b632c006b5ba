//! The columns, keys and constraints of a projection's tables, read from MySQL.

use std::collections::{BTreeSet, HashMap};

use projection::Projection;
use sqlx::{query_as, query_scalar};

use crate::session::{from_row, within};
use crate::{Error, Session};

/// The columns, keys and constraints of a table that decide which statements are batchable.
#[derive(Debug, Clone, Default)]
pub struct TableInfo {
    /// By name, in lower case.
    pub columns: HashMap<String, Column>,
    /// The names of the columns in the order of an INSERT without names, in lower case.
    pub visible: Vec<String>,
    /// The columns of the primary key.
    pub primary: BTreeSet<String>,
    /// The columns of any unique index.
    pub unique: BTreeSet<String>,
    /// The columns of each unique index. An index on expressions or prefixes has none: its columns do not
    /// tell which rows it distinguishes.
    pub unique_indexes: Vec<BTreeSet<String>>,
    /// A sentence that names its trigger or foreign key, if it has one: changes of its rows then depend on
    /// other rows.
    pub has_trigger_or_foreign_key: Option<String>,
    /// Whether it refers to a table with a foreign key: a row may need one that an event of another stream
    /// inserts.
    pub has_foreign_key: bool,
    /// Whether it has CHECK constraints or generated columns. They evaluate every intermediate value, so
    /// changes of its rows cannot be merged.
    pub checks_every_value: bool,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub kind: Kind,
    pub is_nullable: bool,
    pub is_generated: bool,
}

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Any integer type.
    Integer {
        /// The lowest value, inclusive.
        min: i128,
        /// The highest value, inclusive.
        max: i128,
    },
    /// `DECIMAL`
    Decimal {
        /// The number of digits, including those behind the decimal point.
        digits: u32,
        /// The number of digits behind the decimal point.
        scale: u32,
    },
    /// `CHAR`, `VARCHAR` or a `TEXT` type.
    Text {
        /// The greatest length: in characters, but for `TEXT` types in bytes.
        length: u64,
        /// The character set.
        charset: String,
        /// The collation.
        collation: String,
        /// Which of these types it is.
        is: TextType,
    },
    /// `JSON`
    Json,
    /// `DATE`
    Date,
    /// `DATETIME`
    Time {
        /// The number of digits behind the seconds.
        fraction: u32,
    },
    /// `TIMESTAMP`
    Timestamp {
        /// The number of digits behind the seconds.
        fraction: u32,
    },
    /// `TIME`
    Duration {
        /// The number of digits behind the seconds.
        fraction: u32,
    },
    /// `YEAR`
    Year,
    /// `FLOAT` or `DOUBLE`
    Float,
    /// `BIT`
    Bit,
    /// `ENUM`, with its values.
    Enum(Vec<String>),
    /// `SET`, with its values.
    Set(Vec<String>),
    /// `BINARY`, `VARBINARY` or a `BLOB` type.
    Binary {
        /// The length of every value in bytes, if it is fixed.
        length: Option<u64>,
    },
    /// Any other type, by its name.
    Other(String),
}

/// The types of text, which differ in the spaces at the end of a value that they keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextType {
    /// `CHAR` keeps none.
    Char,
    /// `VARCHAR` keeps those within its length in characters.
    Varchar,
    /// The `TEXT` types keep those within their length in bytes.
    Text,
}

impl Kind {
    /// How values of this type compare as keys; `None` if only MySQL can tell whether two values are equal.
    pub fn exact_key(&self) -> Option<Padding> {
        match self {
            Self::Integer { .. } | Self::Time { fraction: 6 } | Self::Date => Some(Padding::None),
            Self::Text { collation, .. } if collation.ends_with("_0900_bin") => Some(Padding::None),
            Self::Text { collation, .. } if collation.ends_with("_bin") => Some(Padding::Spaces),
            _ => None,
        }
    }
}

/// The characters that a comparison of texts ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// None.
    None,
    /// Trailing spaces.
    Spaces,
}

impl TableInfo {
    /// Notes the columns of the unique indexes: of each, the index, its name, and whether it is whole.
    fn index(&mut self, rows: Vec<(String, Option<String>, bool)>) {
        let mut indexes: HashMap<String, Option<BTreeSet<String>>> = HashMap::new();
        for (index, column, is_whole) in rows {
            let known = indexes.entry(index.clone()).or_insert_with(|| Some(BTreeSet::new()));
            match (&column, known.as_mut()) {
                (Some(column), Some(columns)) if is_whole => drop(columns.insert(column.clone())),
                _ => *known = None,
            }
            if let Some(column) = column {
                if index == "PRIMARY" {
                    self.primary.insert(column.clone());
                }
                self.unique.insert(column);
            }
        }
        self.unique_indexes = indexes.into_values().map(Option::unwrap_or_default).collect();
    }

    /// Whether rows with different values in this column are different in every unique index.
    pub(super) fn distinguishes(&self, column: &str) -> bool {
        self.unique_indexes.iter().all(|index| index.contains(column))
    }
}

struct ColumnRow {
    name: String,
    data_type: String,
    column_type: String,
    digits: Option<i64>,
    scale: Option<i64>,
    length: Option<i64>,
    charset: String,
    collation: String,
    fraction: Option<i64>,
    is_nullable: bool,
    is_generated: bool,
    is_visible: bool,
}

from_row!(ColumnRow {
    name,
    data_type,
    column_type,
    digits,
    scale,
    length,
    charset,
    collation,
    fraction,
    is_nullable,
    is_generated,
    is_visible,
});

impl Session {
    /// Reads the columns of a projection's tables, by table name.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn table_infos(
        &mut self,
        projection: &Projection,
    ) -> Result<HashMap<String, TableInfo>, Error> {
        let mut tables = HashMap::new();
        for table in &projection.tables {
            tables.insert(table.name.clone(), self.table_info(&table.name).await?);
        }
        Ok(tables)
    }

    /// The largest statement that the server takes, in bytes.
    pub(crate) async fn max_allowed_packet(&mut self) -> Result<usize, Error> {
        let read = query_scalar("SELECT CAST(@@max_allowed_packet AS SIGNED)");
        let read = read.fetch_one(&mut self.connection);
        let bytes: i64 = within("reading max_allowed_packet", read).await?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Reads the columns of a table in the current database.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn table_info(&mut self, table: &str) -> Result<TableInfo, Error> {
        let mut info = TableInfo::default();
        let read = query_as(
            "SELECT LOWER(CAST(column_name AS CHAR)) AS name,
                    CAST(data_type AS CHAR) AS data_type,
                    CAST(column_type AS CHAR) AS column_type,
                    CAST(numeric_precision AS SIGNED) AS digits,
                    CAST(numeric_scale AS SIGNED) AS scale,
                    CAST(character_maximum_length AS SIGNED) AS length,
                    COALESCE(CAST(character_set_name AS CHAR), '') AS charset,
                    COALESCE(CAST(collation_name AS CHAR), '') AS collation,
                    CAST(datetime_precision AS SIGNED) AS fraction,
                    is_nullable = 'YES' AS is_nullable,
                    generation_expression <> '' AS is_generated,
                    extra NOT LIKE '%INVISIBLE%' AS is_visible
             FROM information_schema.columns
             WHERE table_schema = DATABASE() AND table_name = ?
             ORDER BY ordinal_position",
        )
        .bind(table)
        .fetch_all(&mut self.connection);
        let rows: Vec<ColumnRow> = within("reading the columns of a table", read).await?;
        info.checks_every_value = rows.iter().any(|row| row.is_generated);
        for row in rows {
            let ColumnRow { is_nullable, is_generated, .. } = row;
            let column = Column { kind: kind(&row), is_nullable, is_generated };
            if row.is_visible {
                info.visible.push(row.name.clone());
            }
            info.columns.insert(row.name, column);
        }
        let read = query_as(
            "SELECT CAST(index_name AS CHAR), LOWER(CAST(column_name AS CHAR)), sub_part IS NULL
             FROM information_schema.statistics
             WHERE table_schema = DATABASE() AND table_name = ? AND non_unique = 0",
        )
        .bind(table)
        .fetch_all(&mut self.connection);
        let rows: Vec<(String, Option<String>, bool)> =
            within("reading the indexes of a table", read).await?;
        info.index(rows);
        let read = query_as(
            "SELECT (SELECT COUNT(*) FROM information_schema.triggers
                     WHERE event_object_schema = DATABASE() AND event_object_table = ?),
                    (SELECT COUNT(*) FROM information_schema.referential_constraints
                     WHERE constraint_schema = DATABASE() AND ? IN (table_name, referenced_table_name)),
                    (SELECT COUNT(*) FROM information_schema.table_constraints
                     WHERE table_schema = DATABASE() AND table_name = ?
                       AND constraint_type = 'CHECK'),
                    (SELECT COUNT(*) FROM information_schema.table_constraints
                     WHERE table_schema = DATABASE() AND table_name = ?
                       AND constraint_type = 'FOREIGN KEY')",
        )
        .bind(table)
        .bind(table)
        .bind(table)
        .bind(table)
        .fetch_one(&mut self.connection);
        let (triggers, references, checks, keys): (i64, i64, i64, i64) =
            within("reading the constraints of a table", read).await?;
        info.checks_every_value |= checks > 0;
        info.has_foreign_key = keys > 0;
        info.has_trigger_or_foreign_key = match (triggers, references) {
            (0, 0) => None,
            (0, _) => Some(format!("{table} has a foreign key")),
            _ => Some(format!("{table} has a trigger")),
        };
        Ok(info)
    }
}

fn kind(row: &ColumnRow) -> Kind {
    let number =
        |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
    let integer = |bits: u32| {
        if row.column_type.contains("unsigned") {
            Kind::Integer { min: 0, max: (1 << bits) - 1 }
        } else {
            Kind::Integer { min: -(1 << (bits - 1)), max: (1 << (bits - 1)) - 1 }
        }
    };
    match &*row.data_type {
        "tinyint" => integer(8),
        "smallint" => integer(16),
        "mediumint" => integer(24),
        "int" => integer(32),
        "bigint" => integer(64),
        "decimal" if !row.column_type.contains("zerofill") => {
            Kind::Decimal { digits: number(row.digits), scale: number(row.scale) }
        }
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => Kind::Text {
            length: row.length.and_then(|value| u64::try_from(value).ok()).unwrap_or(0),
            charset: row.charset.clone(),
            collation: row.collation.clone(),
            is: match &*row.data_type {
                "char" => TextType::Char,
                "varchar" => TextType::Varchar,
                _ => TextType::Text,
            },
        },
        "json" => Kind::Json,
        "date" => Kind::Date,
        "datetime" => Kind::Time { fraction: number(row.fraction) },
        "timestamp" => Kind::Timestamp { fraction: number(row.fraction) },
        "time" => Kind::Duration { fraction: number(row.fraction) },
        "year" => Kind::Year,
        "float" | "double" => Kind::Float,
        "bit" => Kind::Bit,
        "enum" => Kind::Enum(members(&row.column_type)),
        "set" => Kind::Set(members(&row.column_type)),
        "binary" => Kind::Binary { length: row.length.and_then(|length| length.try_into().ok()) },
        "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
            Kind::Binary { length: None }
        }
        _ => Kind::Other(row.column_type.clone()),
    }
}

/// The values of a type such as `enum('a','it''s')`.
fn members(column_type: &str) -> Vec<String> {
    let mut members = Vec::new();
    let mut rest = column_type.split_once('(').map_or("", |(_, list)| list).chars().peekable();
    while rest.by_ref().any(|c| c == '\'') {
        let mut member = String::new();
        while let Some(c) = rest.next() {
            match c {
                '\'' if rest.next_if_eq(&'\'').is_none() => break,
                '\\' => member.extend(rest.next().map(unescaped)),
                other => member.push(other),
            }
        }
        members.push(member);
    }
    members
}

/// The character that MySQL writes as a backslash and this letter.
fn unescaped(letter: char) -> char {
    match letter {
        '0' => '\0',
        'n' => '\n',
        'r' => '\r',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_an_enum_are_read() {
        for (column_type, expected) in [
            ("enum('a','b')", vec!["a", "b"]),
            ("set('it''s','a,b','''')", vec!["it's", "a,b", "'"]),
            ("enum('','\\\\','x\\ny')", vec!["", "\\", "x\ny"]),
        ] {
            assert_eq!(members(column_type), expected, "{column_type}");
        }
    }
}
