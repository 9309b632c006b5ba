//! The migrations of a projection's bookkeeping, from `migrations/mysql/projection`.
//!
//! Applied versions are recorded in `<projection>__migrations`. A rebuild swaps that table together with
//! the tables that it describes.

use sqlx::{AssertSqlSafe, SqlSafeStr, query_scalar};

use super::Ledger;
use crate::error::number;
use crate::error_codes::ER_NO_SUCH_TABLE;
use crate::migrator::Migrations;
use crate::session::within;
use crate::{Error, Session};

pub(crate) const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "streams", include_str!("../../../../migrations/mysql/projection/0001_streams.sql")),
    (2, "replay", include_str!("../../../../migrations/mysql/projection/0002_replay.sql")),
    (3, "parked", include_str!("../../../../migrations/mysql/projection/0003_parked.sql")),
    (4, "epoch", include_str!("../../../../migrations/mysql/projection/0004_epoch.sql")),
    (5, "landmark", include_str!("../../../../migrations/mysql/projection/0005_landmark.sql")),
];

/// The placeholder for the name of the projection in the files.
const NAME: &str = "{projection}";

impl Ledger {
    /// The migrations of this projection's bookkeeping.
    pub(crate) fn migrations(&self) -> Migrations {
        let files = MIGRATIONS.map(|(version, description, sql)| {
            // The name has only lower-case letters, digits and underscores, so it needs no quotes.
            let sql = AssertSqlSafe(sql.replace(NAME, self.projection())).into_sql_str();
            (version, description, sql)
        });
        Migrations::new(self.migrations_table(), files.into())
    }
}

impl Session {
    /// The version of a projection's bookkeeping; 0 if it was never migrated.
    pub(crate) async fn bookkeeping_version(&mut self, ledger: &Ledger) -> Result<i64, Error> {
        let sql = format!(
            "SELECT CAST(COALESCE(MAX(version), 0) AS SIGNED) FROM {} WHERE success",
            ledger.migrations_table()
        );
        let read = query_scalar(AssertSqlSafe(sql)).persistent(false);
        let read = async {
            match read.fetch_one(&mut self.connection).await {
                Err(error) if number(&error) == Some(ER_NO_SUCH_TABLE) => Ok(0),
                read => read,
            }
        };
        within("reading the version of the bookkeeping", read).await
    }

    /// Checks that the version of the bookkeeping suffices. A newer one does, because
    /// migrations keep what the previous release uses.
    pub(crate) async fn require_bookkeeping(&mut self, ledger: &Ledger) -> Result<(), Error> {
        let needed = MIGRATIONS[MIGRATIONS.len() - 1].0;
        let found = self.bookkeeping_version(ledger).await?;
        if found >= needed {
            return Ok(());
        }
        let projection = ledger.projection().to_owned();
        Err(Error::OutdatedBookkeeping { projection, found, needed })
    }
}
