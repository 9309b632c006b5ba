//! `outbox-relay grants`.

use clap::Args;
use daemon::Failure;
use daemon::output::say;
use event_store::{Task, rights};

use super::{STATEMENT_LIMIT, failure, open};
use crate::Settings;

/// Print or apply the rights that a role needs for its task, and no others.
///
/// The tasks: append (append events, and read them), integration (insert integration events into the
/// outbox), relay, projector. The role must exist. Rights that it has on the tables from before are revoked
/// in the same transaction. Needs the owner of the tables.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  outbox-relay grants --role shop --as append\n  outbox-relay grants --role \
                  relay --as relay --apply"
)]
pub(crate) struct Grants {
    /// The role in PostgreSQL.
    #[arg(long)]
    role: String,
    /// Its task; can be repeated.
    #[arg(long = "as", value_name = "TASK", required = true, value_parser = task)]
    tasks: Vec<Task>,
    /// Grant the rights. Without it, the statements are printed.
    #[arg(long)]
    pub(crate) apply: bool,
}

fn task(name: &str) -> Result<Task, String> {
    let names: Vec<&str> = Task::ALL.into_iter().map(Task::as_str).collect();
    let found = Task::ALL.into_iter().find(|task| task.as_str() == name);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

impl Grants {
    pub(crate) async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let Self { role, tasks, apply } = self;
        if !apply {
            say(&format!("BEGIN;\n{}COMMIT;", rights(&role, &tasks)));
            return Ok(());
        }
        let mut session = open(settings, STATEMENT_LIMIT).await?;
        session.grant(&role, &tasks).await.map_err(failure)?;
        session.close().await;
        let tasks: Vec<&str> = tasks.iter().map(|task| task.as_str()).collect();
        say(&format!("{role} has the rights for {}", tasks.join(", ")));
        Ok(())
    }
}
