//! The batch forms of a projection: which of its handlers run as sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::SqlStr;

use projection::{Action, Assignment, Handler, NotBatchable, Order, Projection, Statement};

use super::columns::TableInfo;
use super::merge::{Delta, merge};
use super::owner::{Owner, owner};
use super::rounds::{Meeting, Meetings};
use super::row::because;
use super::set::SetForm;
use crate::LockMode;

/// The batch forms of a projection's statements, derived from its tables in service.
#[derive(Debug, Default)]
pub struct Forms {
    /// The form of each statement by its id, or the reason why it has none.
    sets: Vec<Result<SetForm, NotBatchable>>,
    /// The owner of the rows of each statement by its id, or why they have none.
    owners: Vec<Result<Owner, String>>,
    /// Where the events of each handler can meet, by the id of its first statement, or the reason why the
    /// handler runs event by event.
    handlers: HashMap<usize, Result<Meetings, String>>,
    /// Why the order between streams matters, if it does.
    ordered: Option<String>,
    /// See [`Forms::set_bytes`].
    set_bytes: usize,
}

/// The forms of a handler's statements.
#[derive(Debug)]
pub(crate) struct HandlerForms<'f> {
    /// In the order of the statements.
    pub(crate) forms: Vec<&'f SetForm>,
    /// Where its events can meet.
    pub(crate) meetings: &'f Meetings,
}

impl HandlerForms<'_> {
    /// Whether one set may contain several events of one stream.
    pub(crate) fn keeps_order(&self) -> bool {
        !self.meetings.need_rounds()
    }
}

/// The largest set, in bytes of text values. It keeps a statement far below the server's `max_allowed_packet`,
/// which is 64 MiB by default in MySQL 8.4.
const SET_BYTES: usize = 4 << 20;

impl Forms {
    /// Keeps sets within the server's `max_allowed_packet`, in bytes. JSON can double the length of a text, and the
    /// columns without text need space too.
    #[must_use]
    pub fn within_packet(self, packet: usize) -> Self {
        Self { set_bytes: SET_BYTES.min(packet / 8), ..self }
    }

    /// Derives the forms from the columns and keys of the tables, by table name.
    pub fn of_tables(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Self {
        let mut statements: Vec<&Statement> = projection.statements().collect();
        // A file may handle two event types.
        statements.sort_by_key(|statement| statement.id);
        statements.dedup_by_key(|statement| statement.id);
        let delta = |it: &&Statement| Some((it.id, Delta::of(it, tables)?));
        let deltas: Vec<_> = statements.iter().filter_map(delta).collect();
        let mut merged = merge(&deltas, tables);
        let form = |it: &&Statement| SetForm::of(it, tables, merged.remove(&it.id));
        let sets: Vec<_> = statements.iter().map(form).collect();
        let owns = |it: &&Statement| owner(it, tables).map_err(|because| placed(it, &because));
        let owners = statements.iter().map(owns).collect();
        let handlers = projection.handlers().filter_map(|(_, handler)| {
            let first = handler.statements.first()?;
            Some((first.id, meetings(handler, &sets)))
        });
        let handlers = handlers.collect();
        let ordered = ordered(projection, tables);
        Self { sets, owners, handlers, ordered, set_bytes: SET_BYTES }
    }

    /// The forms of a handler's statements.
    ///
    /// # Errors
    ///
    /// The file, the line and the column of what makes the handler run event by event, with the reason.
    pub(crate) fn of(&self, handler: &Handler) -> Result<HandlerForms<'_>, &str> {
        let first = handler.statements.first().map_or(usize::MAX, |statement| statement.id);
        let meetings = match self.handlers.get(&first) {
            Some(Ok(meetings)) => meetings,
            Some(Err(reason)) => return Err(reason),
            None => return Err("the tables have not been read"),
        };
        let form = |it: &Statement| self.sets.get(it.id).and_then(|form| form.as_ref().ok());
        Ok(HandlerForms { forms: handler.statements.iter().filter_map(form).collect(), meetings })
    }

    /// Why a handler runs event by event, with the file, the line and the column; `None` if it runs for many
    /// events at once.
    pub fn one_by_one(&self, handler: &Handler) -> Option<&str> {
        self.of(handler).err()
    }

    /// The SQL of each form, with the statement from which it was derived.
    pub fn set_statements<'p>(&self, projection: &'p Projection) -> Vec<(&'p Statement, SqlStr)> {
        let form =
            |statement: &Statement| self.sets.get(statement.id).and_then(|it| it.as_ref().ok());
        projection
            .statements()
            .filter_map(|statement| Some((statement, form(statement)?.sql())))
            .collect()
    }

    /// For each table, the column that contains the id of the stream to which a row belongs.
    ///
    /// # Errors
    ///
    /// The first statement whose rows may belong to several streams, with the reason.
    pub fn stream_columns(
        &self,
        projection: &Projection,
    ) -> Result<BTreeMap<String, String>, String> {
        if let Some(reason) = &self.ordered {
            return Err(format!("{reason}, so events are applied in the order of the event store"));
        }
        if projection.is_rust {
            return Err("it is written in Rust and may change any row".to_owned());
        }
        let mut columns = BTreeMap::new();
        for statement in projection.statements() {
            let table = statement.touches.first().and_then(|touch| touch.table.clone());
            let owner = match self.owners.get(statement.id) {
                Some(owner) => owner.as_ref().map_err(Clone::clone)?,
                None => return Err("the tables have not been read".to_owned()),
            };
            let (Some(table), Owner::Stream(column)) = (table, owner) else {
                let reason =
                    "its rows belong to single events, and no key column equals :stream_id";
                return Err(placed(statement, &because(statement, reason)));
            };
            let known = columns.entry(table).or_insert_with(|| column.clone());
            if known != column {
                let reason = format!(
                    "the stream id is in column {column}, but another statement has it in {known}"
                );
                return Err(placed(statement, &because(statement, reason)));
            }
        }
        Ok(columns)
    }

    /// The largest set, in bytes of text values: less if an operator has lowered `max_allowed_packet`.
    pub fn set_bytes(&self) -> usize {
        self.set_bytes
    }

    /// Whether events of different streams must be applied in the order of the event store: a foreign key refuses
    /// a row whose parent comes later.
    pub fn is_ordered(&self) -> bool {
        self.ordered.is_some()
    }

    /// A sentence for people about the lock mode.
    pub fn lock_mode_text(&self) -> String {
        if self.is_ordered() {
            return "events are applied in the order of the event store; one batch runs at a time"
                .to_owned();
        }
        match self.owners.iter().find_map(|owner| owner.as_ref().err()) {
            _ if self.owners.is_empty() => "one batch runs at a time".to_owned(),
            None => {
                "each row belongs to one stream; lanes and instances run in parallel".to_owned()
            }
            Some(reason) => format!("one batch runs at a time, because of {reason}"),
        }
    }

    /// The lock mode of batches: shared if each row belongs to one stream. Otherwise two batches could lock
    /// the same rows in different orders and deadlock, so the mode is exclusive.
    pub fn lock_mode(&self) -> LockMode {
        let owned = !self.owners.is_empty() && self.owners.iter().all(Result::is_ok);
        if owned && !self.is_ordered() { LockMode::Shared } else { LockMode::Exclusive }
    }
}

/// Why events must be applied in the order of the event store, if they must.
fn ordered(projection: &Projection, tables: &HashMap<String, TableInfo>) -> Option<String> {
    match projection.order {
        Some(Order::Stream) => None,
        Some(Order::Global) => Some("projection.toml has order = \"global\"".to_owned()),
        None => {
            let keyed = tables.iter().filter(|(_, table)| table.has_foreign_key);
            let first = keyed.map(|(name, _)| name).min()?;
            Some(format!("{first} has a foreign key, and projection.toml has no order"))
        }
    }
}

/// A reason with its file, line and column.
fn placed(statement: &Statement, because: &NotBatchable) -> String {
    let file = statement.file.file_name().unwrap_or_default();
    format!("{}:{because}", file.to_string_lossy())
}

/// Where the events of a handler can meet.
///
/// # Errors
///
/// The reason why the handler runs event by event.
fn meetings(handler: &Handler, sets: &[Result<SetForm, NotBatchable>]) -> Result<Meetings, String> {
    let mut tables: BTreeMap<&str, Vec<Access<'_>>> = BTreeMap::new();
    for (number, statement) in handler.statements.iter().enumerate() {
        let form = match sets.get(statement.id) {
            Some(form) => form.as_ref().map_err(|because| placed(statement, because))?,
            None => return Err("the tables have not been read".to_owned()),
        };
        let access = |pins, writes| Access { number, statement, form, pins, writes };
        if let Ok(shape) = &statement.shape {
            tables.entry(&shape.table).or_default().push(access(form.pins(), true));
        }
        for (table, pins) in form.reads() {
            tables.entry(table).or_default().push(access(pins.clone(), false));
        }
    }
    let mut found = Meetings::default();
    for (table, accesses) in &tables {
        match &**accesses {
            [one] if one.writes => alone(&mut found, one),
            several if several.iter().any(|access| access.writes) => {
                found.all.push(together(table, several)?);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// What one statement of a handler does with one table.
struct Access<'h> {
    /// The number of the statement within the handler.
    number: usize,
    statement: &'h Statement,
    form: &'h SetForm,
    /// The columns that equal a value of the row in all rows that it touches.
    pins: Vec<(String, usize)>,
    /// Whether it changes the table, or only reads it.
    writes: bool,
}

/// Where events meet in a table that one statement changes.
fn alone(found: &mut Meetings, access: &Access<'_>) {
    let Access { number, statement, form, pins, .. } = access;
    let number = *number;
    let places: Vec<usize> = pins.iter().map(|(_, place)| *place).collect();
    let action = statement.shape.as_ref().map(|shape| &shape.action);
    match action {
        Ok(Action::Update { .. }) => {
            // `UPDATE … JOIN` changes each row only once.
            let needs_rounds = form.merges_as().is_none();
            found.all.push(Meeting { at: vec![(number, places)], needs_rounds });
        }
        Ok(Action::Insert { .. }) if !places.is_empty() => {
            found.all.push(Meeting { at: vec![(number, places)], needs_rounds: false });
        }
        Ok(Action::Delete { .. }) => {}
        _ => found.anywhere = true,
    }
}

/// Where events meet in a table that is touched more than once.
fn together(table: &str, accesses: &[Access<'_>]) -> Result<Meeting, String> {
    let mut common: Option<BTreeSet<String>> = None;
    let mut assigned: BTreeSet<&String> = BTreeSet::new();
    for Access { statement, pins, writes, .. } in accesses {
        let own: BTreeSet<String> = pins.iter().map(|(column, _)| column.clone()).collect();
        common = Some(match common {
            None => own,
            Some(common) => &common & &own,
        });
        let changes: &[Assignment] = match statement.shape.as_ref().map(|shape| &shape.action) {
            Ok(Action::Insert { on_duplicate, .. }) if *writes => on_duplicate,
            Ok(Action::Update { assignments, .. }) if *writes => assignments,
            _ => &[],
        };
        assigned.extend(changes.iter().map(|it| &it.column));
    }
    let mut common = common.unwrap_or_default();
    common.retain(|column| !assigned.contains(column));
    if common.is_empty() {
        let statement = accesses[accesses.len() - 1].statement;
        let reason = format!(
            "another part of the handler touches {table} too, and no column equals a parameter in both"
        );
        return Err(placed(statement, &because(statement, reason)));
    }
    let places = |pins: &[(String, usize)]| {
        let place = |column: &String| pins.iter().find(|(name, _)| name == column).map(|it| it.1);
        common.iter().filter_map(place).collect()
    };
    let at = accesses.iter().map(|access| (access.number, places(&access.pins))).collect();
    Ok(Meeting { at, needs_rounds: true })
}
