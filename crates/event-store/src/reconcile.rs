//! Compares the event store with the outbox.
//!
//! The outbox has no index by position, which every append would pay for. So the comparison reads first which
//! events are wanted, then walks through the outbox from its newest row on, until each of them was found.

use std::time::Duration;

use serde::Serialize;
use sqlx::query;
use uuid::Uuid;

use crate::positions::Positions;
use crate::row::from_row;
use crate::selection::{PAGE, selected};
use crate::session::Mode;
use crate::{Error, Selection, Session};

/// The state of the events of a selection in the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    /// Events in the event store.
    pub events: i64,
    /// Confirmed by the broker, or skipped by an operator.
    pub processed: i64,
    /// Not published yet, including events of waiting streams.
    pub pending: i64,
    /// Not in the outbox, but old enough to have been published and deleted.
    pub expired: i64,
    /// Not in the outbox, although they are younger than the retention.
    pub missing: i64,
}

/// An event that is missing in the outbox.
#[derive(Debug, Clone, Serialize)]
pub struct MissingEvent {
    /// Its position.
    pub position: i64,
    /// Its id.
    pub event_id: Uuid,
    /// Its stream.
    pub stream_id: String,
    /// Its version in the stream.
    pub stream_version: i64,
    /// Its type.
    pub event_type: String,
}

from_row!(MissingEvent { position, event_id, stream_id, stream_version, event_type });

/// How far a comparison is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// So many events were read.
    Events(usize),
    /// So many events are still to be found in the outbox.
    Wanted(usize),
}

/// The positions that a page has; NULL for none, and in it for rows without a position.
type Found = Option<Vec<Option<i64>>>;

/// The events that are to be found in the outbox.
#[derive(Default)]
struct Wanted {
    /// Those that must be there.
    young: Positions,
    /// Those that may have been deleted after their publication.
    old: Positions,
    /// Those of both that were found in a pending copy, which `republish` made: the first row may say that
    /// the event was published.
    copied: Positions,
}

impl Wanted {
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Takes an event out that was found. Returns whether it was wanted.
    fn found(&mut self, position: i64) -> bool {
        let wanted = self.young.remove(position) || self.old.remove(position);
        self.copied.remove(position);
        wanted
    }
}

impl Session {
    /// Compares the events of a selection with the outbox.
    ///
    /// Also returns the first missing events, at most `examples`. `retention` is how long published
    /// rows are kept. Calls `progress` after each page.
    ///
    /// Appends, publishing and deletion may go on meanwhile: no event up to the end of the selection may
    /// still be uncommitted, the outbox is read after the events, and whether an event is old enough to
    /// have been deleted is decided at the end.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn reconcile(
        &mut self,
        selection: &Selection,
        retention: Duration,
        examples: usize,
        mut progress: impl FnMut(Compared),
    ) -> Result<(Reconciled, Vec<MissingEvent>), Error> {
        let mut wanted = self.wanted(selection, retention, &mut progress).await?;
        let events = wanted.len();
        let mut counted = Reconciled { events: count(events), ..Reconciled::default() };
        self.find_in_outbox(&mut wanted, &mut counted, &mut progress).await?;
        counted.pending += count(wanted.copied.len());
        for position in std::mem::take(&mut wanted.copied).iter() {
            wanted.found(position);
        }
        let mut missing = Vec::new();
        let lost: Vec<i64> = wanted.young.iter().collect();
        for page in lost.chunks(10_000) {
            for event in self.not_expired(page, retention).await? {
                counted.missing += 1;
                if missing.len() < examples {
                    missing.push(event);
                }
            }
        }
        counted.expired = count(wanted.len()) - counted.missing;
        Ok((counted, missing))
    }

    async fn wanted(
        &mut self,
        selection: &Selection,
        retention: Duration,
        progress: &mut impl FnMut(Compared),
    ) -> Result<Wanted, Error> {
        let (mut rest, mut wanted) = (selection.clone(), Wanted::default());
        while let Some(end) = self.page_end(&rest).await? {
            let page = rest.up_to(end);
            let read = query(concat!(
                "SELECT array_agg(page.position) FILTER (WHERE NOT page.old),
                        array_agg(page.position) FILTER (WHERE page.old)
                 FROM (SELECT e.position,
                              e.recorded_at < now() - make_interval(secs => $8) AS old
                       FROM events e
                       WHERE ",
                selected!(),
                ") AS page"
            ));
            let read = page.bind(read).bind(retention.as_secs_f64());
            let rows: Vec<(Found, Found)> =
                self.run(Mode::Page, "reading events to compare", read).await?;
            for (young, old) in rows {
                wanted.young.extend(positions(young));
                wanted.old.extend(positions(old));
            }
            progress(Compared::Events(wanted.len()));
            rest.after = Some(end);
        }
        Ok(wanted)
    }

    /// Walks through the outbox until every wanted event was found.
    async fn find_in_outbox(
        &mut self,
        wanted: &mut Wanted,
        counted: &mut Reconciled,
        progress: &mut impl FnMut(Compared),
    ) -> Result<(), Error> {
        let mut before = i64::MAX;
        while wanted.len() > 0 {
            let read = query(
                "SELECT min(page.id),
                        array_agg(page.position) FILTER (WHERE page.processed),
                        array_agg(page.position) FILTER (WHERE NOT page.processed AND NOT page.copy),
                        array_agg(page.position) FILTER (WHERE NOT page.processed AND page.copy)
                 FROM (SELECT id, position, processed_at IS NOT NULL AS processed,
                              recorded_at IS NOT NULL AS copy
                       FROM outbox WHERE id < $1 ORDER BY id DESC LIMIT $2) AS page",
            )
            .bind(before)
            .bind(PAGE);
            let rows: Vec<(Option<i64>, Found, Found, Found)> =
                self.run(Mode::Page, "comparing events with the outbox", read).await?;
            let Some((Some(lowest), processed, pending, copies)) = rows.into_iter().next() else {
                return Ok(());
            };
            for position in positions(processed) {
                counted.processed += i64::from(wanted.found(position));
            }
            for position in positions(pending) {
                counted.pending += i64::from(wanted.found(position));
            }
            for position in positions(copies) {
                if wanted.young.contains(position) || wanted.old.contains(position) {
                    wanted.copied.insert(position);
                }
            }
            progress(Compared::Wanted(wanted.len()));
            before = lowest;
        }
        Ok(())
    }

    /// Of events that are not in the outbox, those that are too young to have been deleted there.
    async fn not_expired(
        &mut self,
        positions: &[i64],
        retention: Duration,
    ) -> Result<Vec<MissingEvent>, Error> {
        let query = query(
            "SELECT position, event_id, stream_id, stream_version, event_type
             FROM events
             WHERE position = ANY ($1) AND recorded_at >= now() - make_interval(secs => $2)
             ORDER BY position",
        )
        .bind(positions)
        .bind(retention.as_secs_f64());
        self.run(Mode::Page, "listing missing events", query).await
    }
}

fn positions(found: Found) -> impl Iterator<Item = i64> {
    found.into_iter().flatten().flatten()
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
