//! What other roles than the owner of the tables may do: rights on columns, no more than each task needs.

use sqlx::{AssertSqlSafe, Connection};

use crate::session::within;
use crate::{Error, Session};

/// A task for which a role needs rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Append events, and read them.
    Append,
    /// Insert integration events into the outbox.
    Integration,
    /// `outbox-relay`, its commands included.
    Relay,
    /// `projector`, its commands included.
    Projector,
}

/// Takes away what a role had, also by wider grants of an earlier version. Columns are included.
const REVOKE: &str = include_str!("../../../migrations/postgres/rights/revoke.sql");

impl Task {
    /// All tasks.
    pub const ALL: [Self; 4] = [Self::Append, Self::Integration, Self::Relay, Self::Projector];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Integration => "integration",
            Self::Relay => "relay",
            Self::Projector => "projector",
        }
    }

    fn grants(self) -> &'static str {
        match self {
            Self::Append => include_str!("../../../migrations/postgres/rights/append.sql"),
            Self::Integration => {
                include_str!("../../../migrations/postgres/rights/integration.sql")
            }
            Self::Relay => include_str!("../../../migrations/postgres/rights/relay.sql"),
            Self::Projector => include_str!("../../../migrations/postgres/rights/projector.sql"),
        }
    }
}

/// The statements that give a role the rights for some tasks, and no others. Run them in one transaction, so
/// that the role always has the old or the new ones.
pub fn rights(role: &str, tasks: &[Task]) -> String {
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    let files = [REVOKE].into_iter().chain(tasks.iter().map(|task| task.grants()));
    let sql: Vec<String> = files.map(|sql| sql.replace("{role}", &quoted)).collect();
    sql.join("\n")
}

impl Session {
    /// Gives a role the rights for some tasks, and no others. Needs the owner of the tables.
    ///
    /// # Errors
    ///
    /// When a statement fails; then the role has the rights from before.
    pub async fn grant(&mut self, role: &str, tasks: &[Task]) -> Result<(), Error> {
        let limit = self.client_limit();
        let begin = async {
            let mut transaction = self.connection.begin().await?;
            sqlx::raw_sql(AssertSqlSafe(rights(role, tasks))).execute(&mut *transaction).await?;
            transaction.commit().await
        };
        within(limit, "granting rights", begin).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_quoted() {
        let sql = rights("a\"; DROP TABLE events; --", &Task::ALL);
        assert!(!sql.contains("{role}"));
        assert!(sql.contains("TO \"a\"\"; DROP TABLE events; --\";"));
    }
}
