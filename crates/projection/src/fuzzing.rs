//! Properties that hold for every projection and parameter. Tests run them with the seeds, `cargo xtask
//! fuzz` with random inputs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain_events::{
    EventId, EventType, Json, Position, SchemaVersion, StoredEvent, StreamId, StreamVersion,
};
use serde_json::Value as JsonValue;
use sqlparser::ast::Statement as Parsed;
use sqlparser::tokenizer::Token;

use crate::parameter::{Parameter, Step};
use crate::statement::handler;
use crate::tokens::{parsed, statements};
use crate::{BindError, Fault, Lookup, Projection, Source, Statement, Value, load_all};

/// A value of every event. No message may contain it.
const SECRET: &str = "4111111111111111";
const DATA: &str = r#"{"amount": 19.90, "currency": "EUR", "customer_id": "c-1", "note": null,
    "customer": {"id": "c-1", "name": "Zoë", "country": "DE", "card": "4111111111111111"},
    "lines": [{"sku": "4111111111111111", "quantity": 2, "price": 1e400}]}"#;

/// Loads a projection, binds an event to each of its statements, and passes both to `run`.
///
/// The input lists files; a line `== name` precedes the content of each.
///
/// # Panics
///
/// When a property does not hold.
pub fn projection(input: &[u8], run: impl FnOnce(&Projection, &StoredEvent)) {
    let folder = Folder::new();
    let directory = folder.0.join("fuzzed");
    fs::create_dir(&directory).expect("folders can be created in the temporary folder");
    let mut names = BTreeSet::new();
    for (name, content) in files(input) {
        names.insert(name.clone());
        fs::write(directory.join(name), content)
            .expect("files can be written to the temporary folder");
    }
    match load_all(&folder.0, &[], &[]) {
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in &faults {
                assert_has_place(fault, &directory);
            }
        }
        Ok(projections) => {
            let [projection] = &*projections else {
                panic!("the folder has exactly one projection")
            };
            assert!(names.contains("projection.toml") && names.contains("tables.sql"));
            assert_handlers_are_found(projection);
            let event = event(Json::parse(DATA).expect("the text is JSON"));
            let input_has_secret =
                input.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
            for statement in projection.statements() {
                assert_reads_back(statement);
                if let Err(error) = statement.bind(&event) {
                    assert!(input_has_secret || !error.to_string().contains(SECRET), "{error}");
                }
            }
            run(projection, &event);
        }
    }
}

/// Reads a parameter and finds its value in a payload.
///
/// The input is the parameter without its colon, a line break, and the payload.
///
/// # Panics
///
/// When a property does not hold.
pub fn parameter(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (written, payload) = text.split_once('\n').unwrap_or((text, "{}"));
    let Some(parameter) = read(&format!(":{written}")) else { return };
    assert_eq!(read(&parameter.to_string()).as_ref(), Some(&parameter));

    let Ok(data) = Json::parse(payload) else { return };
    assert_finds_member_beside_others(&data);
    let found = parameter.value(&event(data));
    if let Err(error) = &found {
        assert_quotes_nothing(error, &parameter);
    }
    if let (Source::Data, Ok(payload)) = (parameter.source, serde_json::from_str(payload)) {
        assert_is(found.as_ref(), part(&payload, &parameter.path), parameter.to_string().as_str());
    }
}

/// A temporary folder, which is removed after one call.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let thread = std::thread::current().id();
        let name = format!("projections-{}-{thread:?}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir(&folder.0).expect("folders can be created in the temporary folder");
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the temporary folder can be removed");
    }
}

fn files(input: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        if let Some(name) = line.strip_prefix(b"== ") {
            let name = String::from_utf8_lossy(name).trim().to_owned();
            let usable = !name.contains(['/', '\0']) && (1..200).contains(&name.len());
            if usable && name != "." && name != ".." {
                files.push((name, Vec::new()));
            }
        } else if let Some((_, content)) = files.last_mut() {
            content.extend_from_slice(line);
        }
    }
    files
}

/// Asserts that a mistake names a file of the projection and a line that exists in it.
fn assert_has_place(fault: &Fault, directory: &Path) {
    assert!(fault.file.starts_with(directory), "{fault}");
    assert!(!fault.reason.is_empty(), "{fault}");
    if let Some(line) = fault.line {
        let lines = fs::read_to_string(&fault.file).map_or(0, |text| text.split('\n').count());
        assert!((1..=lines as u64).contains(&line), "{fault}");
    }
}

fn assert_handlers_are_found(projection: &Projection) {
    for (event_type, versions) in &projection.handlers {
        let event_type =
            EventType::new(event_type.as_str()).expect("loading has checked the event type");
        for (version, handler) in versions {
            let found = projection.lookup(&event_type, *version);
            assert!(matches!(found, Lookup::Found(found) if Arc::ptr_eq(found, handler)));
        }
    }
}

/// Asserts that parsing is the inverse of displaying: a statement with its parameters as they are displayed
/// parses to the same statement.
fn assert_reads_back(statement: &Statement) {
    let (mut sql, mut written) = (statement.sql.to_string(), statement.sql.to_string());
    let places = placeholders(&statement.sql);
    assert_eq!(places.len(), statement.parameters.len(), "{sql}");
    for (place, parameter) in places.into_iter().zip(&statement.parameters).rev() {
        // Text directly behind the parameter would become a part of it.
        sql.replace_range(place..=place, "? ");
        written.replace_range(place..=place, &format!("{parameter} "));
    }
    let again = handler(&statement.file, &written, &[])
        .unwrap_or_else(|faults| panic!("{written}: {faults:?}"));
    let [again] = &*again else { panic!("{written}") };
    assert_eq!((again.sql.trim(), &again.parameters), (sql.trim(), &statement.parameters));
}

/// The places of the placeholders in a statement, in bytes.
///
/// # Panics
///
/// When the statement cannot be tokenised.
pub fn placeholders(sql: &str) -> Vec<usize> {
    let tokens = statements(sql).unwrap_or_else(|error| panic!("{error:?}: {sql}"));
    let tokens = tokens.into_iter().flatten();
    tokens
        .filter(|placed| matches!(&placed.token, Token::Placeholder(mark) if mark.starts_with('?')))
        .map(|placed| placed.bytes.start)
        .collect()
}

/// The columns of a `CREATE TABLE` and their types, in lower case.
pub fn columns(create: &Statement) -> Vec<(String, String)> {
    let tokens = statements(&create.sql).unwrap_or_default();
    let Some(Ok(Parsed::CreateTable(table))) = tokens.first().map(|tokens| parsed(tokens, &[]))
    else {
        return Vec::new();
    };
    let columns = table.columns.iter().map(|column| {
        (column.name.value.to_lowercase(), column.data_type.to_string().to_lowercase())
    });
    columns.collect()
}

/// The parameter, if the text is exactly one parameter.
fn read(written: &str) -> Option<Parameter> {
    const BEFORE: &str = "DELETE FROM t WHERE a = ";
    let found = handler(&Arc::from(Path::new("A.sql")), &format!("{BEFORE}{written}"), &[]).ok()?;
    let [statement] = &*found else { return None };
    let alone = statement.sql.strip_prefix(BEFORE) == Some("?");
    statement.parameters.first().filter(|_| alone).cloned()
}

/// Asserts that a member is found beside any other members.
fn assert_finds_member_beside_others(data: &Json) {
    let text = data.as_str().trim();
    let Some(members) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        return;
    };
    let comma = if members.trim().is_empty() { "" } else { "," };
    let data = Json::parse(format!("{{{members}{comma} \"last\": [{text}, 7]}}"));
    let parameter = read(":data.last[1]?").expect("the text is a parameter");
    let found = parameter.value(&event(data.expect("the text is JSON")));
    assert_eq!(found, Ok(Value::Integer(7)));
}

/// Asserts that the message contains no text of the event, only the parameter.
fn assert_quotes_nothing(error: &BindError, parameter: &Parameter) {
    let message = error.to_string().replace(&parameter.to_string(), ":");
    let known = [
        "the event has no :; write :? to use NULL instead",
        ": is a number with more than 65 digits, which MySQL cannot hold",
        ": is not valid JSON",
    ];
    assert!(known.contains(&&*message), "{message}");
}

fn part<'j>(value: &'j JsonValue, path: &[Step]) -> Option<&'j JsonValue> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.as_object()?.get(name),
        Step::Index(index) => value.as_array()?.get(*index),
    })
}

/// Asserts that a value equals the one that a JSON library finds.
fn assert_is(found: Result<&Value, &BindError>, expected: Option<&JsonValue>, parameter: &str) {
    let same = match (found, expected) {
        (Err(BindError::Missing { .. }), None) => !parameter.ends_with('?'),
        (Ok(Value::Null), None) => parameter.ends_with('?'),
        (Ok(Value::Null), Some(value)) => value.is_null(),
        (Ok(Value::Boolean(flag)), Some(value)) => value.as_bool() == Some(*flag),
        (Ok(Value::Text(text)), Some(value)) => value.as_str() == Some(text),
        (Ok(Value::Json(text)), Some(value)) => {
            serde_json::from_str(text).ok().as_ref() == Some(value)
        }
        (Ok(Value::Integer(number)), Some(value)) => {
            value.as_i64() == Some(*number) || value.as_f64() == Some(0.0)
        }
        (Ok(Value::Unsigned(number)), Some(value)) => value.as_u64() == Some(*number),
        (Ok(Value::Decimal(number)), Some(value)) => {
            let near: f64 = number.to_plain_string().parse().expect("the text is a number");
            value.as_f64().is_some_and(|value| (value - near).abs() <= value.abs() * 1e-12)
        }
        (Err(BindError::NotBindable { .. }), Some(value)) => value.is_number(),
        _ => false,
    };
    assert!(same, "{parameter} is {found:?} instead of {expected:?}");
}

fn event(data: Json) -> StoredEvent {
    let at = DateTime::<Utc>::from_timestamp(1_769_851_800, 0).expect("the timestamp is in range");
    StoredEvent {
        event_id: EventId::parse("018f4e3a-0000-7000-8000-000000000001")
            .expect("the event id is valid"),
        event_type: EventType::new("OrderPaid").expect("the event type is valid"),
        schema_version: SchemaVersion::FIRST,
        stream_id: StreamId::new("order-1").expect("the stream id is valid"),
        version: StreamVersion::FIRST,
        position: Position::START,
        data,
        metadata: Json::empty_object(),
        occurred_at: at,
        recorded_at: at,
    }
}
