//! `projector topology`.

use broker::{Connection, Difference, DifferenceKind};
use clap::Subcommand;
use daemon::{Exit, Failure};
use serde::Serialize;

use super::{failure, models};
use crate::Settings;
use crate::topology::Topology as Wanted;
use daemon::output::{Format, say};

/// What a person should know about bindings, which AMQP cannot list.
const BINDINGS: &str = "bindings cannot be read over AMQP; `projector topology apply` declares them again, \
    which changes nothing where they exist";

#[derive(Subcommand, Debug)]
pub(crate) enum Topology {
    /// Show exchanges and queues that are missing or have other settings, and queues without a consumer.
    ///
    /// Exit code 1 if one is missing or has other settings: then messages may get lost. Bindings are not
    /// compared, because AMQP cannot list them; `apply` declares them again.
    #[command(after_help = "Example:\n  projector topology diff order_summary")]
    Diff {
        /// The projections. Default: all configured ones.
        projections: Vec<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Change the broker: declare the exchanges, queues and bindings that are missing.
    ///
    /// This deletes nothing, and does not change existing queues.
    #[command(after_help = "Example:\n  projector topology apply order_summary")]
    Apply {
        /// The projections. Default: all configured ones.
        projections: Vec<String>,
    },
    /// Delete the queues of a projection with their messages. Running projectors declare them again at once, and
    /// apply the events of the deleted messages from the event store.
    ///
    /// This is the last remedy for a queue that delivers to no instance. Use it only while all nodes of the
    /// RabbitMQ cluster run.
    #[command(after_help = "Example:\n  projector topology reset order_summary")]
    Reset {
        /// The projection.
        projection: String,
    },
}

/// The differences of a projection.
#[derive(Serialize)]
struct Compared {
    projection: String,
    differences: Vec<Found>,
}

/// A difference in the output.
#[derive(Serialize)]
struct Found {
    /// The exchange or queue.
    object: String,
    difference: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What to do.
    remedy: &'static str,
}

impl Topology {
    pub(crate) async fn run(&self, settings: &Settings) -> Result<(), Failure> {
        let connection = Connection::connect(&settings.broker()?).await.map_err(failure)?;
        let projections = match self {
            Self::Diff { projections, .. } | Self::Apply { projections } => projections,
            Self::Reset { projection } => std::slice::from_ref(projection),
        };
        let Settings { queue_prefix, exchange, .. } = settings;
        let mut compared = Vec::new();
        for model in models(settings, projections)? {
            let projection = &model.projection;
            let wanted = Wanted::of(projection, queue_prefix, exchange, projection.partitions);
            match self {
                Self::Apply { .. } => {
                    wanted.declare(&connection).await.map_err(failure)?;
                    let name = model.name();
                    say(&format!("{name}: exchanges, queues and bindings are declared"));
                }
                Self::Reset { .. } => reset(&connection, &wanted).await?,
                Self::Diff { .. } => {
                    let found = wanted.compare(&connection).await.map_err(failure)?;
                    compared.push((model.name().to_owned(), found));
                }
            }
        }
        connection.close().await;
        match self {
            Self::Apply { .. } | Self::Reset { .. } => Ok(()),
            Self::Diff { format, .. } => report(compared, *format),
        }
    }
}

/// Deletes the queues of a projection.
async fn reset(connection: &Connection, wanted: &Wanted) -> Result<(), Failure> {
    for queue in &wanted.queues {
        connection.delete_queue(&queue.name).await.map_err(failure)?;
        say(&format!(
            "queue {} is deleted; running projectors declare it again, and apply its events from the event store",
            queue.name
        ));
    }
    Ok(())
}

/// Prints differences. Fails if messages may get lost.
fn report(compared: Vec<(String, Vec<Difference>)>, format: Format) -> Result<(), Failure> {
    let loses = |found: &Difference| {
        matches!(found.kind, DifferenceKind::Missing | DifferenceKind::Other { .. })
    };
    let losses = compared.iter().flat_map(|(_, found)| found).filter(|it| loses(it)).count();
    let of = |(projection, found): (String, Vec<Difference>)| Compared {
        projection,
        differences: found.into_iter().map(Found::of).collect(),
    };
    let compared: Vec<Compared> = compared.into_iter().map(of).collect();
    format.print(&compared, |compared| {
        let mut lines: Vec<String> = compared.iter().map(text).collect();
        lines.push(BINDINGS.to_owned());
        lines.join("\n")
    })?;
    if losses == 0 {
        return Ok(());
    }
    let error =
        anyhow::anyhow!("messages may get lost: {losses} of the differences must be removed");
    Err(Failure::new(Exit::Failed, error))
}

impl Found {
    fn of(Difference { object, kind }: Difference) -> Self {
        let (difference, reason, remedy) = match kind {
            DifferenceKind::Missing => {
                ("is missing", None, "`projector topology apply` declares it")
            }
            DifferenceKind::Other { reason } => (
                "has other settings",
                Some(reason),
                "delete it in RabbitMQ; a projector declares it again, and the event store still has the events",
            ),
            DifferenceKind::Unknown => (
                "exists, but its settings cannot be compared",
                None,
                "use a login that may configure it",
            ),
            DifferenceKind::Patient => (
                "waits 60 s, not 5 s, for a consumer whose cluster node has died",
                Some("an earlier version declared it".to_owned()),
                "set a policy, as OPERATIONS.md says under \"Queues\"",
            ),
            DifferenceKind::NoConsumer => ("has no consumer", None, "run `projector run`"),
        };
        Self { object, difference, reason, remedy }
    }
}

fn text(Compared { projection, differences }: &Compared) -> String {
    if differences.is_empty() {
        return format!("{projection}: no difference in exchanges and queues");
    }
    let line = |Found { object, difference, reason, remedy }: &Found| {
        let reason = reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        format!("\n  {object} {difference}{reason}: {remedy}")
    };
    format!("{projection}:{}", differences.iter().map(line).collect::<String>())
}
