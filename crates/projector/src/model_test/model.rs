//! What the tables and the definition in service must be after each step.

use std::collections::BTreeSet;

use super::{ABSENT, STREAMS, Step, WIDE};

/// The effect of an event under a definition; `None` if it parks its stream.
fn effect(files: usize, event: Option<i64>) -> Option<i64> {
    let factor = [1, 10, 1, 100][files];
    match event {
        Some(n) => Some(factor * n),
        None => (files == 2).then_some(ABSENT),
    }
}

/// A stream in a read model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) version: usize,
    /// `None` without a row.
    pub(super) steps: Option<i64>,
    pub(super) is_parked: bool,
}

type Skips = BTreeSet<(usize, usize)>;

/// A read model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables(pub(super) [Stream; STREAMS]);

/// What must be the case.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    /// The values of the events of each stream.
    pub(super) history: [Vec<Option<i64>>; STREAMS],
    skips: Skips,
    pub(super) live: Tables,
    pub(super) served: usize,
    were_served: BTreeSet<usize>,
    previous: Option<(Tables, usize)>,
    was_rebuilt: bool,
    is_paused: bool,
}

impl Model {
    /// A new projection with the first definition.
    pub(super) fn new() -> Self {
        Self { were_served: [0].into(), ..Self::default() }
    }

    /// Applies the events of a stream up to a version.
    fn fold(&self, tables: &mut Tables, files: usize, stream: usize, until: usize) {
        let one = &mut tables.0[stream];
        while one.version < until && !one.is_parked {
            let event = self.history[stream][one.version];
            if !self.skips.contains(&(stream, one.version + 1)) {
                let Some(steps) = effect(files, event) else {
                    one.is_parked = true;
                    return;
                };
                one.steps = Some(one.steps.unwrap_or(0) + steps);
            }
            one.version += 1;
        }
    }

    fn fold_all(&self, tables: &mut Tables, files: usize) {
        for stream in 0..STREAMS {
            self.fold(tables, files, stream, self.history[stream].len());
        }
    }

    fn serve(&mut self, files: usize) {
        self.served = files;
        self.were_served.insert(files);
    }

    /// Takes a step. Returns whether its command succeeds.
    pub(super) fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Append { stream, poison } => {
                let n = i64::try_from(self.history[stream].len()).unwrap() + 1;
                self.history[stream].push((!poison).then_some(n));
                true
            }
            Step::Restart { .. } => true,
            Step::Deliver { files } => {
                let same_tables = (files == WIDE) == (self.served == WIDE);
                if files != self.served && same_tables && !self.were_served.contains(&files) {
                    self.serve(files);
                }
                if files == self.served && !self.is_paused {
                    let mut live = self.live.clone();
                    self.fold_all(&mut live, files);
                    self.live = live;
                }
                true
            }
            Step::Rebuild { files, allow_parked } => {
                self.was_rebuilt = true;
                let mut new = Tables::default();
                self.fold_all(&mut new, files);
                if !allow_parked && new.0.iter().any(|stream| stream.is_parked) {
                    return false;
                }
                self.previous = Some((std::mem::replace(&mut self.live, new), self.served));
                self.serve(files);
                true
            }
            Step::RollBack { .. } => {
                let Some((mut tables, files)) = self.previous.take() else { return false };
                for stream in 0..STREAMS {
                    let one = &mut tables.0[stream];
                    if self.skips.contains(&(stream, one.version + 1)) {
                        one.is_parked = false;
                    }
                }
                self.fold_all(&mut tables, files);
                self.live = tables;
                self.serve(files);
                true
            }
            Step::CleanUp { .. } => {
                if self.was_rebuilt {
                    self.previous = None;
                }
                self.was_rebuilt
            }
            Step::Adopt { files } => {
                let same_tables = (files == WIDE) == (self.served == WIDE);
                if same_tables {
                    self.serve(files);
                }
                same_tables
            }
            Step::Pause => {
                self.is_paused = true;
                true
            }
            Step::Repair { files }
            | Step::Retry { files }
            | Step::Skip { files, .. }
            | Step::Fold { files, .. }
            | Step::Resume { files } => files == self.served && self.take_in_service(step),
        }
    }

    /// Takes a step of a command whose files are in service.
    fn take_in_service(&mut self, step: Step) -> bool {
        let (mut live, served) = (self.live.clone(), self.served);
        let done = match step {
            Step::Repair { .. } => self.repair(&mut live),
            Step::Retry { .. } => {
                for stream in 0..STREAMS {
                    if std::mem::take(&mut live.0[stream].is_parked) {
                        self.fold(&mut live, served, stream, self.history[stream].len());
                    }
                }
                !live.0.iter().any(|stream| stream.is_parked)
            }
            Step::Skip { stream, .. } => {
                let one = &mut live.0[stream];
                if !one.is_parked {
                    return false;
                }
                one.version += 1;
                one.is_parked = false;
                self.skips.insert((stream, one.version));
                self.fold(&mut live, served, stream, self.history[stream].len());
                true
            }
            Step::Fold { stream, .. } => {
                live.0[stream] = Stream::default();
                self.fold(&mut live, served, stream, self.history[stream].len());
                true
            }
            _ => {
                self.is_paused = false;
                true
            }
        };
        self.live = live;
        done
    }

    fn repair(&self, live: &mut Tables) -> bool {
        let rows = |tables: &Tables| tables.0.clone().map(|stream| stream.steps);
        let mut expected = Tables::default();
        self.fold_all(&mut expected, self.served);
        if rows(&expected) == rows(live) {
            return true;
        }
        let before = live.clone();
        for stream in 0..STREAMS {
            self.fold(live, self.served, stream, expected.0[stream].version);
        }
        if rows(&expected) == rows(live) {
            return true;
        }
        if (0..STREAMS).any(|stream| expected.0[stream].version != live.0[stream].version) {
            *live = before;
            return false;
        }
        for (live, expected) in live.0.iter_mut().zip(expected.0) {
            live.steps = expected.steps;
        }
        true
    }
}
