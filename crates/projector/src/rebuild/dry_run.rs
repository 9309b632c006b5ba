//! What a rebuild would do, without doing it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use read_model::{ParkedReason, Session};
use serde::Serialize;

use super::progress::RebuildPace;
use super::{Error, Rebuilder};

/// What a rebuild would do.
#[derive(Debug, Serialize)]
pub(crate) struct DryRun {
    events: u64,
    seconds: f64,
    /// Events of types that no handler is for: they leave no trace.
    unhandled: BTreeMap<String, u64>,
    /// Why streams would be parked, those reasons first that most have. What comes after the first
    /// such event of a stream is not looked at.
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
        writeln!(
            f,
            "{events} events in {seconds:.1} s, {rate:.0} events/s: a rebuild takes as long"
        )?;
        for (event_type, count) in unhandled {
            writeln!(f, "no handler for {event_type}: {count} events leave no trace")?;
        }
        for ParkedReason { reason, streams, first_stream, first_version, .. } in parked {
            writeln!(
                f,
                "{streams} streams would be parked, {first_stream} at version {first_version} for one: \
                 {reason}"
            )?;
        }
        Ok(())
    }
}

impl Rebuilder {
    /// Applies the whole history to tables that are dropped afterwards.
    pub(crate) async fn dry_run(&self) -> Result<DryRun, Error> {
        let mut session = Session::connect(&self.mysql).await?;
        let ledger = self.model().ledger;
        self.alone(&mut session, &ledger).await?;
        let (database, tables) = (&self.databases.verify, self.tables(&ledger));
        session.make_database(database).await?;
        session.drop_tables(database, &tables).await?;
        let begun = Instant::now();
        let mut target = self.target(&mut session, database).await?;
        let mut pace = RebuildPace::of_comparison(&self.report, &self.store, &mut session);
        self.come_nearer(&mut target, &mut pace).await?;
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
