//! The versions of a projection's bookkeeping, as in `migrations/mysql/projection`.
//!
//! Applied versions are recorded in `<projection>__migrations`, which a rebuild swaps together with the
//! tables that it speaks of.

use sqlx::{AssertSqlSafe, SqlSafeStr, query_scalar};

use super::Ledger;
use crate::error::number;
use crate::error_codes::ER_NO_SUCH_TABLE;
use crate::schema::Migrations;
use crate::session::within;
use crate::{Error, Session};

pub(crate) const MIGRATIONS: [(i64, &str, &str); 4] = [
    (1, "streams", include_str!("../../../../migrations/mysql/projection/0001_streams.sql")),
    (2, "replay", include_str!("../../../../migrations/mysql/projection/0002_replay.sql")),
    (3, "parked", include_str!("../../../../migrations/mysql/projection/0003_parked.sql")),
    (4, "epoch", include_str!("../../../../migrations/mysql/projection/0004_epoch.sql")),
];

/// What stands for the projection's name in the files.
const NAME: &str = "{projection}";

impl Ledger {
    /// The migrations of this projection's bookkeeping.
    pub(crate) fn migrations(&self) -> Migrations {
        let files = MIGRATIONS.map(|(version, description, sql)| {
            // A projection's name has lower-case letters, digits and underscores only.
            let sql = AssertSqlSafe(sql.replace(NAME, self.projection())).into_sql_str();
            (version, description, sql)
        });
        Migrations::new(self.migrations_table(), files.into())
    }
}

impl Session {
    /// The version of a projection's bookkeeping; 0 when it was never migrated.
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

    /// Makes sure that the bookkeeping has everything that this program uses; a newer one has.
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
