//! Compares the rows of a table with those of a reference: the same table in another database.
//!
//! A first pass collects the keys of rows that differ. It runs while events are applied, so such a row is
//! only a suspect. A second pass, in a batch that runs alone, compares the suspects again.

use std::fmt;

use serde::Serialize;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Row};

use crate::batching::{Kind, TableInfo, quoted};
use crate::session::{within, within_minutes};
use crate::{Batch, Error, Session};

/// A row that differs from the reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The table.
    pub table: String,
    /// The values of the primary key.
    pub key: Vec<String>,
    /// The kind of difference.
    pub kind: DriftKind,
    /// The columns that differ.
    pub columns: Vec<ColumnDrift>,
    /// The stream to which the row belongs, and its version on both sides; `None` if it may belong to several.
    pub stream: Option<StreamAt>,
    #[serde(skip)]
    key_columns: Vec<String>,
}

/// A column that differs. Values are texts, cut after 60 characters; binary ones in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnDrift {
    /// The column.
    pub column: String,
    /// The value in service; `None` is NULL.
    pub found: Option<String>,
    /// The value that the event store gives; `None` is NULL.
    pub expected: Option<String>,
}

/// A stream and a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamAt {
    /// The stream.
    pub stream_id: String,
    /// The last version that both sides have applied.
    pub version: i64,
}

/// The most characters of a value that are shown.
const SHOWN: usize = 60;

impl Drift {
    /// The value of a column of the key.
    pub fn key(&self, column: &str) -> Option<&str> {
        let place = self.key_columns.iter().position(|name| name == column)?;
        self.key.get(place).map(String::as_str)
    }
}

impl fmt::Display for ColumnDrift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, found, expected } = self;
        let [found, expected] =
            [found, expected].map(|value| value.as_deref().unwrap_or("NULL").to_owned());
        write!(f, "{column} is {found}, expected {expected}")
    }
}

/// The kind of difference of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// Only the reference has the row.
    Missing,
    /// The reference does not have the row.
    Extra,
    /// Some columns have other values.
    Different,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, key, kind, columns, stream, .. } = self;
        write!(f, "{table} ({})", key.join(", "))?;
        if let Some(StreamAt { stream_id, version }) = stream {
            write!(f, " at version {version} of {stream_id}")?;
        }
        match kind {
            DriftKind::Missing => f.write_str(": missing"),
            DriftKind::Extra => f.write_str(": must not be there"),
            DriftKind::Different => {
                let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
                write!(f, ": {}", columns.join("; "))
            }
        }
    }
}

/// The rows of a table that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// All rows.
    All,
    /// The rows of those streams that the bookkeeping of the reference contains.
    OfStreams {
        /// The column with the stream id.
        column: String,
        /// The table of the bookkeeping, `<projection>__streams`.
        streams: String,
    },
}

/// The comparison of one table with its reference.
pub struct Comparison {
    table: String,
    /// The condition for the compared rows of the live table, as SQL.
    only: String,
    live: String,
    reference: String,
    /// The table with the keys of the suspects.
    suspects: String,
    keys: Vec<String>,
    /// The columns that are not generated.
    columns: Vec<(String, Kind)>,
}

impl Comparison {
    /// The comparison of a table of the session's database with the same table in the database `reference`.
    ///
    /// # Errors
    ///
    /// [`Error::NoPrimaryKey`].
    pub fn of(table: &str, info: &TableInfo, reference: &str, rows: &Rows) -> Result<Self, Error> {
        if info.primary.is_empty() {
            return Err(Error::NoPrimaryKey { table: table.to_owned() });
        }
        let written = info.columns.iter().filter(|(_, column)| !column.is_generated);
        let mut columns: Vec<_> =
            written.map(|(name, column)| (name.clone(), column.kind.clone())).collect();
        columns.sort_by(|(one, _), (other, _)| one.cmp(other));
        let only = match rows {
            Rows::All => "TRUE".to_owned(),
            Rows::OfStreams { column, streams } => format!(
                "l.{} IN (SELECT stream_id FROM {}.{})",
                quoted(column),
                quoted(reference),
                quoted(streams)
            ),
        };
        Ok(Self {
            only,
            live: quoted(table),
            reference: format!("{}.{}", quoted(reference), quoted(table)),
            // Names of tables in projections have no double underscore.
            suspects: format!("{}.{}", quoted(reference), quoted(&format!("{table}__suspects"))),
            keys: info.primary.iter().cloned().collect(),
            columns,
            table: table.to_owned(),
        })
    }

    /// The name of the table.
    pub fn table(&self) -> &str {
        &self.table
    }

    fn joined(&self, one: &str, other: &str) -> String {
        let equal = |key: &String| format!("{one}.{0} = {other}.{0}", quoted(key));
        self.keys.iter().map(equal).collect::<Vec<_>>().join(" AND ")
    }

    fn any_differs(&self) -> String {
        let columns = self.columns.iter().map(|(name, kind)| differs(name, kind));
        columns.collect::<Vec<_>>().join(" OR ")
    }

    fn keys_of(&self, alias: &str) -> String {
        let key = |key: &String| format!("{alias}.{}", quoted(key));
        self.keys.iter().map(key).collect::<Vec<_>>().join(", ")
    }

    /// The SQL that collects the keys of rows that differ.
    fn collect_sql(&self) -> String {
        let Self { live, reference, suspects, only, .. } = self;
        let first = quoted(&self.keys[0]);
        format!(
            "CREATE TABLE {suspects} AS
             SELECT {} FROM {live} AS l LEFT JOIN {reference} AS r ON {on}
             WHERE {only} AND (r.{first} IS NULL OR {})
             UNION ALL
             SELECT {} FROM {reference} AS r LEFT JOIN {live} AS l ON {on} WHERE l.{first} IS NULL",
            self.keys_of("l"),
            self.any_differs(),
            self.keys_of("r"),
            on = self.joined("l", "r"),
        )
    }

    /// The SQL that compares the suspects again. Its columns are the key, whether each side has the row, and for
    /// each column whether it differs, with the text of both values.
    fn recheck_sql(&self) -> String {
        let Self { live, reference, suspects, .. } = self;
        let first = quoted(&self.keys[0]);
        let keys: Vec<String> =
            self.keys.iter().map(|key| format!("CAST(s.{} AS CHAR)", quoted(key))).collect();
        let column = |(name, kind): &(String, Kind)| {
            let [found, expected] = ["l", "r"].map(|side| shown(side, name, kind));
            format!("{}, {found}, {expected}", differs(name, kind))
        };
        let columns: Vec<String> = self.columns.iter().map(column).collect();
        format!(
            "SELECT {}, l.{first} IS NOT NULL, r.{first} IS NOT NULL, {}
             FROM {suspects} AS s
             LEFT JOIN {live} AS l ON {} LEFT JOIN {reference} AS r ON {}
             WHERE (l.{first} IS NULL) <> (r.{first} IS NULL) OR {}",
            keys.join(", "),
            columns.join(", "),
            self.joined("l", "s"),
            self.joined("r", "s"),
            self.any_differs(),
        )
    }

    fn drift(&self, row: &MySqlRow) -> Result<Option<Drift>, sqlx::Error> {
        let count = self.keys.len();
        let key = (0..count)
            .map(|index| Ok(row.try_get::<Option<String>, _>(index)?.unwrap_or_default()))
            .collect::<Result<Vec<_>, sqlx::Error>>()?;
        let (is_live, is_in_reference): (bool, bool) =
            (row.try_get(count)?, row.try_get(count + 1)?);
        let mut columns = Vec::new();
        for (index, (name, _)) in self.columns.iter().enumerate() {
            let place = count + 2 + 3 * index;
            if row.try_get(place)? {
                let (found, expected) = (row.try_get(place + 1)?, row.try_get(place + 2)?);
                columns.push(ColumnDrift { column: name.clone(), found, expected });
            }
        }
        let kind = match (is_live, is_in_reference) {
            (false, true) => DriftKind::Missing,
            (true, false) => DriftKind::Extra,
            (true, true) => DriftKind::Different,
            (false, false) => return Ok(None),
        };
        let (table, key_columns) = (self.table.clone(), self.keys.clone());
        Ok(Some(Drift { table, key, kind, columns, stream: None, key_columns }))
    }
}

/// The SQL of a value's text.
fn shown(side: &str, column: &str, kind: &Kind) -> String {
    let value = format!("{side}.{}", quoted(column));
    match kind {
        Kind::Binary { .. } | Kind::Bit | Kind::Other(_) => format!("LEFT(HEX({value}), {SHOWN})"),
        _ => format!("LEFT(CAST({value} AS CHAR), {SHOWN})"),
    }
}

/// The SQL condition that a column differs. Texts are compared by their bytes, since a collation can treat
/// different texts as equal.
fn differs(column: &str, kind: &Kind) -> String {
    let column = quoted(column);
    match kind {
        Kind::Text { .. } => {
            format!("NOT (CAST(l.{column} AS BINARY) <=> CAST(r.{column} AS BINARY))")
        }
        _ => format!("NOT (l.{column} <=> r.{column})"),
    }
}

impl Session {
    /// Collects the suspects. Returns their number.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn collect_suspects(&mut self, compared: &Comparison) -> Result<u64, Error> {
        self.plain(compared.collect_sql()).await?;
        let count = format!("SELECT COUNT(*) FROM {}", compared.suspects);
        let count = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut self.connection);
        let count: i64 = within("counting differences", count).await?;
        Ok(count.unsigned_abs())
    }

    /// Drops the collected suspects.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn drop_suspects(&mut self, compared: &Comparison) -> Result<(), Error> {
        self.plain(format!("DROP TABLE IF EXISTS {}", compared.suspects)).await
    }
}

impl Batch<'_> {
    /// Compares the suspects again. Returns those that still differ.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn recheck(&mut self, compared: &Comparison) -> Result<Vec<Drift>, Error> {
        let sql = AssertSqlSafe(compared.recheck_sql());
        let rows = within_minutes(sqlx::query(sql).fetch_all(self.connection())).await?;
        let drift: Result<Vec<_>, _> = rows.iter().map(|row| compared.drift(row)).collect();
        let drift = drift.map_err(|error| Error::of("reading differences", error))?;
        Ok(drift.into_iter().flatten().collect())
    }

    /// Replaces the suspects of all tables by the rows of the reference.
    ///
    /// Foreign keys between the tables are not checked meanwhile: the reference has checked them, and a row that
    /// is deleted and inserted again must not delete the rows that refer to it.
    ///
    /// # Errors
    ///
    /// When MySQL fails. The session must be dropped.
    pub async fn repair(&mut self, compared: &[Comparison]) -> Result<(), Error> {
        self.check_foreign_keys(false).await?;
        for compared in compared {
            self.repair_table(compared).await?;
        }
        self.check_foreign_keys(true).await
    }

    async fn check_foreign_keys(&mut self, check: bool) -> Result<(), Error> {
        let sql = AssertSqlSafe(format!("SET SESSION foreign_key_checks = {check}"));
        let set = sqlx::raw_sql(sql).execute(self.connection());
        within("setting foreign_key_checks", set).await.map(drop)
    }

    async fn repair_table(&mut self, compared: &Comparison) -> Result<(), Error> {
        let Comparison { live, reference, suspects, columns, .. } = compared;
        let names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
        let from: Vec<String> = names.iter().map(|name| format!("r.{name}")).collect();
        for sql in [
            format!(
                "DELETE l FROM {live} AS l JOIN {suspects} AS s ON {}",
                compared.joined("l", "s")
            ),
            format!(
                "INSERT INTO {live} ({}) SELECT DISTINCT {} FROM {reference} AS r JOIN {suspects} AS s ON {}",
                names.join(", "),
                from.join(", "),
                compared.joined("r", "s")
            ),
        ] {
            within_minutes(sqlx::query(AssertSqlSafe(sql)).execute(self.connection())).await?;
        }
        Ok(())
    }
}
