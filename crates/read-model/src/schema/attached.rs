//! What people have attached to the tables in service by hand. A swap would move it along, drop it or fail.

use std::fmt;

use sqlx::query_as;

use crate::session::within;
use crate::{Error, Session};

/// Something that a swap of the tables cannot keep in service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// The table.
    pub table: String,
    /// Its kind: `column`, `index`, `partition`, `trigger`, `foreign key to` or `foreign key of`.
    pub kind: String,
    /// Its name, or the other table of a foreign key.
    pub name: String,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, kind, name } = self;
        write!(f, "table {table} has the {kind} {name}")
    }
}

impl Session {
    /// What makes a swap of these tables impossible, or would be moved out of service with them: triggers, and
    /// foreign keys from and to tables that are not among them. MySQL refuses to move a table with triggers to
    /// another database. A foreign key follows its table there, so that the application would refer to previous
    /// rows.
    ///
    /// Views and rights stay: they name a table, and the new one has the same name.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn attached(
        &mut self,
        database: &str,
        tables: &[String],
    ) -> Result<Vec<Attached>, Error> {
        let tables = serde_json::json!(tables).to_string();
        let read = query_as(
            "WITH own AS (
                 SELECT name FROM JSON_TABLE(?, '$[*]' COLUMNS (name VARCHAR(64) PATH '$')) AS names
             ), place AS (SELECT ? AS name)
             SELECT CAST(event_object_table AS CHAR), 'trigger', CAST(trigger_name AS CHAR)
             FROM information_schema.triggers, place
             WHERE event_object_schema = place.name
               AND event_object_table IN (SELECT name FROM own)
             UNION
             SELECT CAST(referenced_table_name AS CHAR), 'foreign key of',
                    CONCAT(table_schema, '.', table_name)
             FROM information_schema.key_column_usage, place
             WHERE referenced_table_schema = place.name
               AND referenced_table_name IN (SELECT name FROM own)
               AND NOT (table_schema = place.name AND table_name IN (SELECT name FROM own))
             UNION
             SELECT CAST(table_name AS CHAR), 'foreign key to',
                    CONCAT(referenced_table_schema, '.', referenced_table_name)
             FROM information_schema.key_column_usage, place
             WHERE table_schema = place.name AND table_name IN (SELECT name FROM own)
               AND referenced_table_name IS NOT NULL
               AND NOT (referenced_table_schema = place.name
                        AND referenced_table_name IN (SELECT name FROM own))
             ORDER BY 1, 2, 3",
        )
        .bind(tables)
        .bind(database)
        .fetch_all(&mut self.connection);
        let rows = within("reading what is attached to the tables", read).await?;
        Ok(rows.into_iter().map(attached).collect())
    }

    /// The columns, indexes and partitions that tables have in the database `live` and lack in `new`.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn extras(
        &mut self,
        [live, new]: [&str; 2],
        tables: &[String],
    ) -> Result<Vec<Attached>, Error> {
        let names = serde_json::json!(tables).to_string();
        let mut found = Vec::new();
        for database in [live, new] {
            let read = query_as(
                "WITH own AS (
                     SELECT name FROM JSON_TABLE(?, '$[*]' COLUMNS (name VARCHAR(64) PATH '$')) AS names
                 ), place AS (SELECT ? AS name)
                 SELECT CAST(table_name AS CHAR), 'column', CAST(column_name AS CHAR)
                 FROM information_schema.columns, place
                 WHERE table_schema = place.name AND table_name IN (SELECT name FROM own)
                 UNION
                 SELECT CAST(table_name AS CHAR), 'index', CAST(index_name AS CHAR)
                 FROM information_schema.statistics, place
                 WHERE table_schema = place.name AND table_name IN (SELECT name FROM own)
                 UNION
                 SELECT CAST(table_name AS CHAR), 'partition', CAST(partition_name AS CHAR)
                 FROM information_schema.partitions, place
                 WHERE table_schema = place.name AND table_name IN (SELECT name FROM own)
                   AND partition_name IS NOT NULL
                 ORDER BY 1, 2, 3",
            )
            .bind(&names)
            .bind(database)
            .fetch_all(&mut self.connection);
            let rows = within("reading the form of the tables", read).await?;
            found.push(rows.into_iter().map(attached).collect::<Vec<_>>());
        }
        let new = found.pop().unwrap_or_default();
        let live = found.pop().unwrap_or_default();
        Ok(live.into_iter().filter(|one| !new.contains(one)).collect())
    }

    /// Whether the tables in service were created from this `tables.sql`.
    ///
    /// # Errors
    ///
    /// When MySQL fails.
    pub async fn has_same_tables(
        &mut self,
        projection: &projection::Projection,
    ) -> Result<bool, Error> {
        let read =
            sqlx::query_scalar("SELECT tables_hash FROM projector_projections WHERE name = ?")
                .bind(&projection.name)
                .fetch_optional(&mut self.connection);
        let hash: Option<String> = within("reading a projection", read).await?;
        Ok(hash.as_ref() == Some(&projection.tables_hash))
    }
}

fn attached((table, kind, name): (String, String, String)) -> Attached {
    Attached { table, kind, name }
}
