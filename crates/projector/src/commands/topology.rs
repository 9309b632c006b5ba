//! `projector topology`.

use broker::{Connection, Difference};
use clap::Subcommand;
use daemon::{Exit, Failure};

use super::{failure, models};
use crate::Settings;
use crate::topology::Topology as Wanted;
use daemon::output::say;

#[derive(Subcommand, Debug)]
pub(crate) enum Topology {
    /// Show missing queues, queues with other settings, and queues without a consumer.
    ///
    /// Exit code 1 if a queue is missing or has other settings: then messages may get lost.
    #[command(after_help = "Example:\n  projector topology diff order_summary")]
    Diff {
        /// The projections. Default: all configured ones.
        projections: Vec<String>,
    },
    /// Change the broker: declare the exchanges, queues and bindings that are missing.
    ///
    /// This deletes nothing, and does not change existing queues.
    #[command(after_help = "Example:\n  projector topology apply order_summary")]
    Apply {
        /// The projections. Default: all configured ones.
        projections: Vec<String>,
    },
}

impl Topology {
    pub(crate) async fn run(&self, settings: &Settings) -> Result<(), Failure> {
        let (Self::Diff { projections } | Self::Apply { projections }) = self;
        let connection = Connection::connect(&settings.broker()?).await.map_err(failure)?;
        let mut losses = 0;
        for model in models(settings, projections)? {
            let projection = &model.projection;
            let Settings { queue_prefix, exchange, .. } = settings;
            let wanted = Wanted::of(projection, queue_prefix, exchange, projection.partitions);
            if matches!(self, Self::Apply { .. }) {
                wanted.declare(&connection).await.map_err(failure)?;
                say(&format!("{}: exchanges, queues and bindings are declared", model.name()));
                continue;
            }
            let mut differences = Vec::new();
            for queue in &wanted.queues {
                let found = connection.compare_queue(queue).await.map_err(failure)?;
                differences.extend(
                    found.into_iter().filter(|new| !differences.contains(new)).collect::<Vec<_>>(),
                );
            }
            losses += differences
                .iter()
                .filter(|it| !matches!(it, Difference::NoConsumer { .. }))
                .count();
            say(&text(model.name(), &differences));
        }
        connection.close().await;
        if losses == 0 {
            Ok(())
        } else {
            let error = anyhow::anyhow!(
                "{losses} queues are missing or have other settings; `projector topology apply` declares missing \
                 ones"
            );
            Err(Failure::new(Exit::Failed, error))
        }
    }
}

fn text(projection: &str, differences: &[Difference]) -> String {
    if differences.is_empty() {
        return format!("{projection}: no difference");
    }
    let lines = differences.iter().map(|difference| match difference {
        Difference::Missing { queue } => format!("  queue {queue} is missing"),
        Difference::Other { queue, reason } => {
            format!("  queue {queue} has other settings: {reason}")
        }
        Difference::NoConsumer { queue } => {
            format!("  queue {queue} has no consumer; run `projector run`")
        }
    });
    format!("{projection}:\n{}", lines.collect::<Vec<_>>().join("\n"))
}
