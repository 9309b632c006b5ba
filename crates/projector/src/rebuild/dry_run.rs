//! Reports what a rebuild would do, without changing the live tables.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use daemon::output::counted;
use read_model::{ParkedReason, Session};
use serde::Serialize;

use super::progress::RebuildPace;
use super::{Error, Rebuilder};

/// The result of a dry run.
#[derive(Debug, Serialize)]
pub(crate) struct DryRun {
    events: u64,
    seconds: f64,
    /// The number of events of each type that has no handler.
    unhandled: BTreeMap<String, u64>,
    /// Why streams would be parked, the most frequent reason first. Events after the first failed event of a
    /// stream are not tried.
    parked: Vec<ParkedReason>,
}

impl DryRun {
    /// Whether every stream could be applied.
    pub(crate) fn is_clean(&self) -> bool {
        self.parked.is_empty()
    }
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, seconds, unhandled, parked } = self;
        let rate = f64::from(u32::try_from(*events).unwrap_or(u32::MAX)) / seconds.max(0.001);
        let events = counted(events, "event", "events");
        writeln!(
            f,
            "{events} in {seconds:.1} s, {rate:.0} events/s; a rebuild takes about as long"
        )?;
        for (event_type, count) in unhandled {
            let count = counted(count, "event has", "events have");
            writeln!(f, "no handler for {event_type}: {count} no effect")?;
        }
        for ParkedReason { reason, streams, first_stream, first_version, .. } in parked {
            let streams = counted(streams, "stream", "streams");
            writeln!(
                f,
                "{streams} would be parked, for example {first_stream} at version {first_version}: \
                 {reason}"
            )?;
        }
        Ok(())
    }
}

impl Rebuilder {
    /// Applies the whole history to separate tables, and drops them.
    pub(crate) async fn dry_run(&self) -> Result<DryRun, Error> {
        let mut session = Session::connect(&self.mysql).await?;
        let ledger = self.model().ledger;
        self.require_exclusive(&mut session, &ledger).await?;
        let (database, tables) = (&self.databases.verify, self.tables(&ledger));
        session.make_database(database).await?;
        session.drop_tables(database, &tables).await?;
        let begun = Instant::now();
        let mut target = self.target(&mut session, database).await?;
        let mut pace = RebuildPace::of_comparison(&self.report, &self.store, &mut session);
        self.replay_decided(&mut target, &mut pace).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let (built, model) = target.session();
        let parked = built.parked_reasons(&model.ledger).await?;
        let unhandled = pace.unhandled.iter();
        let unhandled = unhandled.map(|(kind, count)| (kind.as_str().to_owned(), *count)).collect();
        let found = DryRun { events: pace.events, seconds, unhandled, parked };
        target.close().await;
        session.drop_tables(database, &tables).await?;
        session.close().await;
        Ok(found)
    }
}
